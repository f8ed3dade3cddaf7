"""The wheel, for the tests that use dist-train without this checkout. Those run in one worker (tests/sharing.py)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "dist_train", folder / "source/dist_train", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", "./source"]
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=folder, check=True, timeout=280)
    return next((folder / "out").glob("*.whl"))
