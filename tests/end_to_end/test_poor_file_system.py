"""A file system without hard links, symbolic links, locks and syncs, as SMB, exFAT and some of FUSE are."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.faults.fixture import record
from tests.faults.lives import ROOT

CONFIG = """
name: poor
data: {name: digits}
model: {name: mlp, hidden: [16]}
optimizer: {name: sgd, lr: 0.1}
batch: {microbatches: 2, global_size: 64}
train: {duration: 20 steps}
eval: {every: 10 steps}
checkpoint: {every: 5 steps, background: true}
tracking: {every: 1 steps, samples: true, wandb: {mode: disabled}}
"""
REFUSED = {"link,linkat,symlink,symlinkat": "EPERM", "flock": "EOPNOTSUPP", "fsync,fdatasync": "EINVAL"}
TRAIN, DOCTOR = ([sys.executable, "-m", "dist_train.launch", name] for name in ("train", "doctor"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
WITHOUT_LOCKS = "no locks there (Operation not supported): rank 0's lease alone keeps a second launch out"
WITHOUT_SYNCS = "this file system does not sync folders: a power loss may take the newest checkpoint"


def train(folder, before, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [*before, *TRAIN, *words, "--nproc-per-node", "2"],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: apt-get install strace")
@pytest.mark.timeout(300)
def test_a_run_goes_its_way_and_says_once_what_is_missing(tmp_path):
    (tmp_path / "poor.yaml").write_text(CONFIG)
    calls = [f"--inject={names}:error={error}" for names, error in REFUSED.items()]
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "strace.log", f"--trace={','.join(REFUSED)}", *calls]
    code, said = train(tmp_path, strace, "poor.yaml")
    assert code == 0, said
    assert "Traceback" not in said and [said.count(words) for words in (WITHOUT_LOCKS, WITHOUT_SYNCS)] == [1, 1], said
    refused = (tmp_path / "strace.log").read_text()
    assert all(f"{name}(" in refused for name in ("link", "symlink", "flock", "fsync"))
    (run,) = (tmp_path / "runs/poor").iterdir()  # and no link called latest
    code, said = train(tmp_path, strace, "--resume", str(run))
    assert code == 0, said
    doctor = subprocess.run([*strace, *DOCTOR], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert "syncs of folders and locks do not work there" in doctor.stdout + doctor.stderr, doctor.stdout
    code, whole = train(tmp_path, [], "poor.yaml", "--run-dir", "whole")
    assert code == 0 and "no locks" not in whole and "does not sync" not in whole
    assert record(tmp_path / "whole").difference(record(run)) is None
