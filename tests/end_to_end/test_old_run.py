"""A run directory that an earlier version has written is listed, evaluated and resumed.

The version before dist_train/rundir/ has written old_run/, on two ranks, and stopped after 30 of 44 steps.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.rundir.records import read_launches

SAVED = "a556a936c0f65926d1899d52a601dc543930959cfcbd6d04b0b83a16a45b26af"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(Path(__file__).parent / "old_run", tmp_path / "runs/digits/old-run")
    return tmp_path / "runs/digits/old-run"


def call(*words: object, folder: Path) -> str:
    command = [sys.executable, "-m", "launch", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_older_versions_run_goes_on(old, tmp_path):
    assert SAVED in call("fingerprint", old, folder=tmp_path)
    (listed,) = json.loads(call("runs", "--json", folder=tmp_path))
    assert (listed["state"], listed["step"], listed["total_steps"]) == ("stopped", 30, 44)
    found = json.loads(call("evaluate", old, "--json", "--nproc-per-node", 1, folder=tmp_path))
    known = json.loads((old / "state.json").read_text())["metrics"]
    assert found["accuracy"] == pytest.approx(known["accuracy"], abs=0.02)
    words = ["--nproc-per-node", 1, "--resume", old, "train.stop_after=null"]
    call("train", *words, "--allow-change", "torch", "--allow-change", "data", folder=tmp_path)
    assert json.loads((old / "state.json").read_text())["step"] == 44
    launches = read_launches(old)
    assert [(launch.number, launch.began.ranks, launch.ended.reason) for launch in launches] == [
        (1, 2, "stopped, as the config says"),
        (2, 1, "done"),
    ]
