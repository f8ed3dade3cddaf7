"""Loading processes from a fork server, as they are with CUDA, under the launcher: signals to the whole tree."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_train.checkpoint.store import locate
from launch.diagnosis.evidence import main_thread
from launch.processes import descendants
from launch.rank.heartbeat import SIGNAL

ROOT = Path(__file__).parents[2]
CONFIG = """
name: served
data: {name: "tests.end_to_end.scripts.served_data:Numbers"}
model: {name: mlp, hidden: [8]}
batch: {microbatches: 2, global_size: 32}
loader: {workers: 2}
train: {duration: 400 epochs}
eval: {every: 100000 steps}
checkpoint: {every: 100000 steps}
tracking: {every: 10 steps, wandb: {mode: disabled}}
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PATIENCE = 60


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "served.yaml").write_text(CONFIG)
    return tmp_path


def _command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def _to_all(launcher, number):
    for pid in (launcher, *descendants(launcher)):
        os.kill(pid, number)


def _until(condition):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_signals_to_every_process_save_and_stop_and_nothing_is_lost(folder):
    """USR2, a save; then TERM. Neither the server nor its children answer them; they do show their stacks."""
    words = ["-m", "dist_train.launch", "train", "served.yaml", "--nproc-per-node", "1", "--run-dir", "pieces"]
    with subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as launcher:
        next(line for line in launcher.stderr if re.match(r"[\d:]{8} step ", line))
        session = json.loads((folder / "pieces" / "generations" / "1" / "ranks" / "0.json").read_text())
        server = next(pid for pid in descendants(session["pid"]) if b"forkserver" in _command_of(pid))
        workers = descendants(server)
        assert len(workers) == 2
        stacks = next(
            fd for fd in Path(f"/proc/{session['pid']}/fd").iterdir() if "dist-train-stacks" in os.readlink(fd)
        )
        os.kill(workers[0], SIGNAL)
        asked = _until(lambda: "worker" in stacks.read_text() and stacks.read_text())
        assert any(frame.function == "_worker_loop" for frame in main_thread(asked, 0))
        _to_all(launcher.pid, signal.SIGUSR2)
        _until(lambda: [*(folder / "pieces" / "checkpoints").glob("step-*")])
        assert descendants(server) == workers
        _to_all(launcher.pid, signal.SIGTERM)
        said = launcher.stderr.read()
    assert launcher.returncode == 143, said
    state = json.loads((folder / "pieces" / "state.json").read_text())
    assert state["status"] == "stopped"
    assert locate(folder / "pieces", print).manifest["step"] == state["step"]
