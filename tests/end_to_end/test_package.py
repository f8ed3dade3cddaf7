"""The wheel and what one does with it, where this checkout is not."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from dist_train.config import shipped
from tests.end_to_end.conftest import ROOT

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*words, cwd, code=0, timeout=250):
    done = subprocess.run(words, cwd=cwd, env=PLAIN, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout, done.stderr


def test_the_wheel_has_all_that_the_checkout_has_and_nothing_else(wheel):
    """Every file of the package's folders that git knows, by the name that it is imported by."""
    folders = ("dist_train", "launch", "configs", "examples")
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = set(listed.split()) - {f"dist_train/{link}" for link in folders}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        facts = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    assert names == {f"dist_train/{name}".replace("dist_train/dist_train/", "dist_train/") for name in known}
    assert {"dist_train/py.typed", "dist_train/configs/schema.json", "dist_train/launch/slurm/body.sh"} <= names
    assert {"Requires-Python: >=3.11", "Provides-Extra: demo", "Classifier: Typing :: Typed"} <= set(facts.split("\n"))


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory):
    """A fresh environment with the wheel. What it depends on is this interpreter's, but for what is installed there as
    editable: a path in a .pth is added, and the .pth files in it are not read."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel, cwd=folder)
    site, _ = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    Path(site.strip(), "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


LOADS_ALL = """
import importlib.util, pathlib, dist_train
from dist_train.config import shipped, source, trust
for name in shipped.names():
    for power in trust.powers(source.load(shipped.meant_by(name))):
        assert importlib.util.find_spec(power.what.partition(":")[0]), power
print(pathlib.Path(dist_train.__file__).parents[1], *shipped.names())
"""


def test_a_shipped_config_trains_from_the_wheel_by_its_name(venv, tmp_path):
    """In an empty folder; and what the others name is in the wheel."""
    where, *names = run(venv / "python", "-c", LOADS_ALL, cwd=tmp_path)[0].split()
    assert where.startswith(str(venv.parent)) and names == shipped.names()
    short = ["train.duration=2 steps", "schedule.warmup=0 steps", "eval.most_batches=1", "--nproc-per-node", "1"]
    _, said = run(venv / "dist-train", "train", "digits", *short, cwd=tmp_path)
    assert "digits · cnn" in said and [path.name for path in tmp_path.iterdir()] == ["runs"]
    latest = json.loads((tmp_path / "runs/digits/latest/state.json").read_text())
    assert (latest["status"], latest["step"]) == ("done", 2)


def bounds():
    """What setup.cfg asks for, at its least: `torch==2.11`."""
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    needed = found["options"]["install_requires"] + found["options.extras_require"]["demo"]
    return [line.replace(" >= ", "==") for line in needed.split("\n") if line]


def newer_python():
    """One above 3.11, of those that can be had; DIST_TRAIN_NEWER_PYTHON names another."""
    named = os.environ.get("DIST_TRAIN_NEWER_PYTHON")
    found = [named] if named else [shutil.which(f"python3.{minor}") for minor in (14, 13, 12)]
    found += sorted(map(str, Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python3")), reverse=True)
    for python in filter(None, found):
        if subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return python
    pytest.skip("no Python newer than 3.11 with venv: DIST_TRAIN_NEWER_PYTHON names one")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("versions", ["oldest", "newest"])
def test_digits_trains_with_the_oldest_and_the_newest_versions(wheel, tmp_path, versions):
    """The least that setup.cfg asks for on this Python, and the newest there is on a newer one. pip's own settings and
    variables say which index they come from."""
    python = sys.executable if versions == "oldest" else newer_python()
    pins = bounds() if versions == "oldest" else []
    run(python, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    own = tmp_path / "venv/bin"
    run(own / "python", "-m", "pip", "install", "-q", f"{wheel}[demo]", *pins, cwd=tmp_path, timeout=3000)
    hashes = set()
    for ranks in ("1", "2"):
        words = ["train", "digits", "--nproc-per-node", ranks, "--run-dir", ranks, "tracking.wandb.mode=disabled"]
        _, said = run(own / "dist-train", *words, cwd=tmp_path)
        assert float(re.search(r"done in .* accuracy ([\d.]+) %", said)[1]) > 95
        hashes.add(run(own / "dist-train", "fingerprint", ranks, cwd=tmp_path)[0])
    assert len(hashes) == 1
