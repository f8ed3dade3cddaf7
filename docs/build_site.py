"""Builds the documents into a site that needs no network: `python docs/build_site.py FOLDER` writes FOLDER/site.

The documents are read as files too, so they keep their places and their links: the site is built from copies of them
that lie to each other as they do in the repository.
"""

import shutil
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "slurm/README.md")
_DOCUMENTS += ("docs/**/*.md", "docs/images/*.png", "docs/iframe-worker.js")


def stage(folder: Path) -> None:
    """Copies what belongs to the site to FOLDER/pages, and its settings beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    for document in (found for pattern in _DOCUMENTS for found in _ROOT.glob(pattern)):
        copy = folder / "pages" / document.relative_to(_ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(document, copy)
    shutil.copyfile(_ROOT / "docs" / "zensical.toml", folder / "zensical.toml")


def main() -> None:
    folder = Path(sys.argv[1])
    stage(folder)
    sys.exit(subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder).returncode)


if __name__ == "__main__":
    main()
