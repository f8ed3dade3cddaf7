"""`dist-train replay` as a person types it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
CONFIG = """
name: digits
data: {name: digits}
model: {name: cnn, width: 8, dropout: 0.1}
augment: [{name: random_crop, padding: 1}]
optimizer: {name: sgd, lr: 0.1}
batch: {microbatches: 4, global_size: 64}
train: {duration: 2 epochs}
checkpoint: {every: 10 steps, keep: 9}
tracking: {wandb: {mode: disabled}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two ranks."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "digits.yaml").write_text(CONFIG)
    run(folder, "dist-train", "train", "digits.yaml", "--nproc-per-node", "2", "--run-dir", "run")
    return folder / "run"


@pytest.fixture
def folder(tmp_path, trained):
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    (tmp_path / "scratch").mkdir()
    return tmp_path


def environment(folder):
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(folder / "scratch")}


def run(folder, *command, code=0):
    """Runs a command of .venv/bin to its end; returns stdout and stderr."""
    done = subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.long
def test_a_run_of_two_ranks_is_replayed_and_left_as_it_is(folder):
    before = contents(folder / "run")
    window = ["replay", "run", "--from-step", "13", "--to-step", "24"]
    out, said = run(folder, "dist-train", *window, "--nproc-per-node", "1")
    assert out.startswith("bit-identical: steps 11 to 24 (loss, lr, grad_norm) and 1 evaluation, ")
    assert out.endswith(", on 1 rank\n") and "replaying from step-00000010 on 1 rank" in said
    told = json.loads(run(folder, "dist-train", *window, "--nproc-per-node", "2", "--json")[0])
    assert told["identical"] and told["ranks"] == 2
    request = json.dumps({"run": "run", "from_step": 13, "to_step": 24})
    plain, _ = run(folder, "python", "-m", "dist_train.commands.replay", request)
    assert plain == out
    assert contents(folder / "run") == before
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.1\n", "lr: 0.2\n"))
    out, _ = run(folder, "dist-train", *window, "--nproc-per-node", "1", code=1)
    assert "not bit-identical: step 11: lr was 0." in out
    _, said = run(folder, "dist-train", *window[:-1], "99", "--nproc-per-node", "2", code=2)
    assert "this run has 44" in said and "Traceback" not in said
    _, said = run(folder, "dist-train", *window, "--nproc-per-node", "5", code=2)
    assert "start at most 4 ranks" in said
    _, said = run(folder, "dist-train", *window, "--nproc-per-node", "none", code=2)
    assert "--nproc-per-node none: give a number" in said
    assert [path.name for path in (folder / "scratch").iterdir() if path.name.startswith("dist-train")] == []


def test_ctrl_c_ends_a_replay_and_leaves_nothing(folder):
    command = [BIN / "dist-train", "replay", "run", "--from-step", "1", "--to-step", "44", "--show"]
    with subprocess.Popen(
        [*command, "--nproc-per-node", "2"], cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout.readline().startswith("step 1 ")
        started.send_signal(signal.SIGINT)
        rest = started.stdout.read()
    assert started.returncode == 130 and "bit-identical" not in rest
    assert [path.name for path in (folder / "scratch").iterdir() if path.name.startswith("dist-train")] == []
