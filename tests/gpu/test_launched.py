"""One rank under the launcher with two loading processes from a fork server: its ends, and what comes after them."""

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
from dist_train.commands.fingerprint import fingerprint
from launch.processes import descendants
from tests.gpu.placed import environment

ROOT = Path(__file__).parents[2]
PATIENCE = 120
CONFIG = """
name: launched
data: {name: "tests.end_to_end.scripts.served_data:Numbers", args: {size: 1024}}
model: {name: mlp, hidden: [8]}
batch: {microbatches: 2, global_size: 32}
loader: {workers: 2}
train: {duration: 2000 steps}
eval: {every: 100000 steps}
checkpoint: {every: 50 steps}
tracking: {every: 10 steps, wandb: {mode: disabled}}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "launched.yaml").write_text(CONFIG)
    return tmp_path


def _started(folder, device, *words):
    command = [sys.executable, "-m", "dist_train.launch", "train", "launched.yaml", "--nproc-per-node", "1", *words]
    given = {**os.environ, **environment(device), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=given, stderr=subprocess.PIPE, text=True)


def _first_step(launcher):
    said = []
    for line in launcher.stderr:
        said.append(line)
        if re.match(r"[\d:]{8} step ", line):
            return
    raise AssertionError("".join(said))


def _fork_server(launcher):
    """The rank's, and its own children: (server, loading processes)."""
    for pid in descendants(launcher.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"multiprocessing.forkserver" in command:
            return pid, descendants(pid)
    raise AssertionError("no fork server")


def _interrupt(launcher):
    launcher.send_signal(signal.SIGINT)
    return 130


def _terminate_all(launcher):
    for pid in (launcher.pid, *descendants(launcher.pid)):
        os.kill(pid, signal.SIGTERM)
    return 143


def _kill(launcher):
    """Everything below it ends with it: the rank, the fork server, the loading processes."""
    below = descendants(launcher.pid)
    launcher.kill()
    end = time.monotonic() + PATIENCE
    while any(_lives(pid) for pid in below):
        assert time.monotonic() < end
        time.sleep(0.05)
    return -signal.SIGKILL


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stopped_killed_and_started_again_it_ends_in_the_same_bits(folder, launched_on):
    stop = "train.stop_after=600 steps"
    for end in (_interrupt, _terminate_all, _kill):
        with _started(folder, launched_on, "--run-dir", "pieces") as launcher:
            _first_step(launcher)
            server, workers = _fork_server(launcher)
            assert len(workers) == 2
            for pid in (server, *workers):
                open_files = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
                assert not [path for path in open_files if path.startswith("/dev/nvidia")]
            code = end(launcher)
            said = launcher.stderr.read()
        assert launcher.returncode == code, said
    for run in ("pieces", "whole"):
        with _started(folder, launched_on, "--run-dir", run, stop) as launcher:
            said = launcher.stderr.read()
        assert launcher.returncode == 0, said
    whole, pieces = (locate(folder / run, print) for run in ("whole", "pieces"))
    assert whole.path.name == pieces.path.name and fingerprint(whole) == fingerprint(pieces)


def _ended(folder, device, model, *words):
    with _started(folder, device, "--run-dir", "run", f"model={model}", *words) as launcher:
        said = launcher.stderr.read()
    return launcher.returncode, said


def test_a_kernel_that_does_not_end_is_a_hang(folder, launched_on):
    model = '{name: "tests.gpu.modules:Sleeps", args: {number: 20}}'
    code, said = _ended(folder, launched_on, model, "--hang-timeout", "5")
    assert code == 15, said
    assert "no rank has finished a step for" in said
    verdict = json.loads((folder / "run" / "generations" / "1" / "verdict.json").read_text())
    assert 5 <= verdict["cause"]["seconds"] < 40
    if launched_on == "cuda":
        assert verdict["ranks"][0]["waits"] == "collective"


def test_memory_that_the_device_does_not_have_is_exit_code_12(folder, launched_on):
    code, said = _ended(folder, launched_on, '{name: "tests.gpu.modules:Greedy", args: {number: 20}}')
    assert code == 12, said
    assert "Traceback" not in said and "modules.py" in said
