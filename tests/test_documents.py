"""The documents name files and modules that are there, their links lead somewhere, and the index has every page."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.lines import __main__ as lines
from tests.test_architecture import SLURM_OUTSIDE

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
INDEX = ROOT / "docs" / "index.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "slurm" / "README.md", *PAGES]
DOCUMENTS += [ROOT / f"{name}.md" for name in ("AGENTS", "CODE_OF_CONDUCT", "CONTRIBUTING", "SECURITY")]
FOLDERS = "launch|dist_train|tests|benchmarks|configs|docs|examples"
OF_THE_USER = {"script.py", "train.py", "data/birds.py", "mine.yaml", "other.yaml", "points.yaml", "cluster.sh"}
OF_THE_USER |= {"birds.yaml", "cluster.yaml"}
OF_A_RUN = {"config.yaml", "RUN/config.yaml", "slurm/config.yaml", "slurm/job.sbatch", "points/000-lr0.1.yaml"}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def paths(text: str) -> Iterator[str]:
    """What is named as a file outside of the examples, and everything that begins with a folder of ours."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"(?<![\w./*-])[\w./-]+\.(?:py|md|yaml|sh|sbatch)\b", prose)
    yield from (found.rstrip(".") for found in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*", text))


@each_document
def test_every_path_that_a_document_names_is_there(document):
    folders = (ROOT, ROOT / "launch", ROOT / "dist_train", document.parent)
    named = {path for path in paths(document.read_text()) if "NAME" not in path} - OF_THE_USER - OF_A_RUN
    assert {path for path in named if not any((folder / path).exists() for folder in folders)} == set()


def test_every_folder_is_on_the_map():
    chart = (ROOT / "CONTRIBUTING.md").read_text().partition("## How the house is laid out")[2].partition("\n## ")[0]
    known = ("launch", "dist_train")
    folders = [
        below for above in known for below in (ROOT / above).iterdir() if below.is_dir() and below.name[0] != "_"
    ]
    names = {f"{below.parent.name}/{below.name}/": below.name for below in folders if below.resolve().name not in known}
    assert {path for path, name in names.items() if f"`{path}`" not in chart and f"`{name}/`" not in chart} == set()


def test_who_adds_a_scheduler_is_told_every_file_that_names_the_first():
    row = next(line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if "| a job scheduler |" in line)
    told = {path.replace("NAME", "slurm") for path in re.findall(r"`((?:launch|dist_train)/[\w/.]+\.py)`", row)}
    assert told - {"launch/job.py"} == SLURM_OUTSIDE.keys()


def test_the_citation_has_the_version_of_the_package():
    version = re.search(r"^version = (\S+)$", (ROOT / "setup.cfg").read_text(), re.M)
    assert version and f"version: {version[1]}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_loop_that_a_document_shows_is_the_loop():
    shown = re.search(
        r"`train_step` in `loop.py`.*?```python\n(.*?)```", (ROOT / "docs/training-loop.md").read_text(), re.S
    )
    assert shown is not None
    code = {line.strip() for line in (ROOT / "dist_train/loop.py").read_text().splitlines()}
    assert [line for line in shown[1].splitlines() if line.strip() not in code] == []


READING_ORDER = (
    (ROOT / "README.md").read_text().partition("\n## Reading it\n")[2].partition("\n[docs/training-loop.md]")[0]
)
ABOUT = 0.1
"""How far the number of lines that the reading order gives may be from the truth."""


def defined(file: str) -> dict[str, int]:
    """The functions and classes of a file, methods as `Class.method`, each with its number of lines."""
    found = {}
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = (node.end_lineno or 0) - node.lineno + 1
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{one.name}": (one.end_lineno or 0) - one.lineno + 1 for one in methods}
    return found


def files_of(text: str) -> list[str]:
    """The files that a part of the reading order names, each once."""
    return [*dict.fromkeys(found for found in re.findall(r"`([\w/]+\.py)`", text) if "NAME" not in found)]


def rows_of(text: str) -> list[list[str]]:
    """The cells of each row of a table's body."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if "`" in row[0] + row[1]]


def test_what_the_reading_order_names_is_where_it_says():
    pairs = re.findall(r"`([\w.]+)`(?:,? both)? in\s+`([\w/]+\.py)`", READING_ORDER)
    first_table = [row for row in rows_of(READING_ORDER) if row[0][0] == "`"]
    pairs += [(name, row[0].strip("`")) for row in first_table for name in re.findall(r"`(\w[\w.]*)`", row[1])]
    assert len(pairs) > 30, "the patterns no longer fit the text"
    assert [pair for pair in pairs if pair[0] not in defined(pair[1])] == []
    everything = {name for file in files_of(READING_ORDER) for name in defined(file)}
    known = everything | {name.rpartition(".")[2] for name in everything} | {"command", "srun"}
    named = set(re.findall(r"`([A-Za-z_]\w*(?:\.[a-z_]\w*)?)`", READING_ORDER))
    assert {name for name in named if not name.endswith(".py")} - known == set()


def test_the_reading_order_gives_the_number_of_lines():
    first, _, rest = READING_ORDER.partition("The way from the supervisor")
    detour = rest.partition("Then read what you need")[0]
    said = [
        int(re.sub(r"\D", "", number)) for number in re.findall(r"(?:about|another)\s([\d,]+)\slines", READING_ORDER)
    ]
    main_way = [row[0].strip("`") for row in rows_of(first) if row[0][0] == "`"]
    partly = dict(re.findall(r"Of `([\w/]+\.py)` you\s+need only `(\w+)`", detour))
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in [*main_way, *files_of(detour)]}
    lines |= {file: defined(file)[name] for file, name in partly.items()}
    true = [sum(lines[file] for file in main_way), sum(n for file, n in lines.items() if file not in main_way)]
    assert len(main_way) == 9 and len(partly) == 1
    assert [pair for pair in zip(said, true, strict=True) if abs(pair[0] - pair[1]) > ABOUT * pair[1]] == []


@each_document
def test_every_module_that_a_document_names_is_there(document):
    named = re.findall(rf"(?<![\w./-])(?:{FOLDERS})(?:\.\w+)+(?::\w+)?", document.read_text())
    assert {name for name in named if not is_there(name)} == set()


def is_there(name: str) -> bool:
    """A module, a package, or a name in one: `package.module.Thing` or `package.module:Thing`."""
    place = ROOT.joinpath(*re.split("[.:]", name))
    if place.is_dir() or place.with_suffix(".py").is_file():
        return True
    homes = [place.parent.with_suffix(".py"), place.parent / "__init__.py"]
    return any(re.search(rf"\b{place.name}\b", home.read_text()) for home in homes if home.is_file())


@each_document
def test_every_link_leads_somewhere(document):
    for target, heading in links(document):
        assert target.exists(), target
        assert not heading or heading in headings(target), f"{target} has no heading #{heading}"


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """File and heading of each link that stays in the project."""
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not re.match(r"\w+://", link):
            path, _, heading = link.partition("#")
            yield (document.parent / path).resolve() if path else document, heading


def headings(document: Path) -> set[str]:
    """As GitHub makes them into anchors."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_has_every_page_and_every_page_leads_back():
    others = set(PAGES) - {INDEX}
    assert {target for target, _ in links(INDEX)} >= others
    assert {page for page in others if INDEX not in {target for target, _ in links(page)}} == set()


def test_the_lines_that_a_user_writes_are_as_many_as_the_document_says():
    said = re.findall(r"^\| .* \| (\d+), an? .* \| (\d+) \| (\d+) \|$", (ROOT / "docs/lines.md").read_text(), re.M)
    assert [[int(number) for number in row] for row in said] == [
        [lines.count(lines.path(task, side)) for side in lines.SIDES] for task in lines.TASKS
    ]
