"""`make docs`: the documents as a site. Pages that are made from the code are up to date."""

import importlib.util
import re
import runpy
import subprocess
import sys
import tomllib

import pytest

from tests.docs.given import ROOT

LOADED = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?https?:|<link[^>]*rel=["']?stylesheet[^>]*https?:""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that holds the pages and the site."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("Zensical is not installed here: make docs installs it")
    folder = tmp_path_factory.mktemp("site") / "docs"
    build = [sys.executable, str(ROOT / "docs" / "build_site.py"), str(folder)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_builds_strictly_and_needs_no_network(site):
    pages = sorted((site / "site").rglob("*.html"))
    assert len(pages) >= len(list((site / "pages").rglob("*.md")))
    assert {page.name: found[0] for page in pages if (found := LOADED.search(page.read_text()))} == {}
    assert "microbatch" in (site / "site" / "search.js").read_text()


def test_every_page_is_in_the_navigation():
    pages = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "slurm/README.md"}
    pages |= {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")}
    settings = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text())
    assert set(leaves(settings["project"]["nav"])) == pages


def leaves(tree):
    if isinstance(tree, str):
        yield tree
    else:
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(branch)


def test_the_reference_of_the_command_line_is_fresh():
    reference = runpy.run_path(str(ROOT / "docs" / "cli_reference.py"))
    assert (ROOT / "docs" / "cli.md").read_text() == reference["markdown"](), (
        "python docs/cli_reference.py > docs/cli.md"
    )
