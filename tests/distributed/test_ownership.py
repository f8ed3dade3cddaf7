"""Whole trainings that want the same run directory: one runs, and one that was taken for dead leaves no trace."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_train.checkpoint.state import TrainState
from dist_train.config.source import load
from dist_train.errors import UserError
from dist_train.parallel.ranks import Ranks
from dist_train.run_state import RunRecord
from dist_train.rundir.lease import Lease
from dist_train.rundir.ownership import EXPIRY_S, FOLDER, claim_path, current
from tests.distributed.training import result, train, write_configs

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
PLAIN = [BIN / "python", "-m", "dist_train", "base.yaml", "--run-dir", "run"]
LAUNCHER = [BIN / "dist-train", "train", "base.yaml", "--nproc-per-node", "2", "--run-dir", "run"]
OFTEN = ["checkpoint.every=2 steps", "tracking.every=1 steps"]


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


def tree(run_dir):
    """Every file's content but logs; the owner's own claim is not counted."""
    files = (path for path in sorted(run_dir.rglob("*")) if path.is_file())
    return {path: path.read_bytes() for path in files if not {FOLDER, "logs"} & set(path.parts)}


@pytest.fixture
def start(folder):
    """Starts a training and returns it once it has printed a line of metrics, which it does after its first save."""
    started = []

    def begin(command, *more):
        process = subprocess.Popen(
            [*command, *OFTEN, *more], cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        said = []
        for line in process.stderr:
            said.append(line)
            if re.match(r"[\d:]{8} step [3-9]/", line):
                return process
        raise AssertionError("".join(said))

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_live_run_s_directory_is_refused_to_ranks_and_launcher_and_nothing_changes(run_ranks, folder):
    run_dir = folder / "run"
    run_ranks(train, 1, folder, "base.yaml", "run", "train.stop_after=2 steps")
    with Lease() as lease:
        lease.take(run_dir)
        before = tree(run_dir)
        assert run_ranks(train, 2, folder, "base.yaml", "run") == [3, 3]
        began = time.monotonic()
        refused = subprocess.run(LAUNCHER, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert refused.returncode == 3 and time.monotonic() - began < 5
        assert f"belongs to a live run: process {os.getpid()} on" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert tree(run_dir) == before and len(list((run_dir / FOLDER).iterdir())) == 1
    assert run_ranks(train, 2, folder, "base.yaml", "run") == [0, 0]


def test_a_killed_run_goes_on_at_once_and_ends_as_if_nothing_had_happened(run_ranks, folder, start, whole):
    killed = start(PLAIN)
    killed.kill()
    killed.wait()
    began = time.monotonic()
    assert run_ranks(train, 2, folder, "base.yaml", "run") == [0, 0]
    assert time.monotonic() - began < EXPIRY_S  # an owner elsewhere would have been watched for so long
    assert result(folder / "run") == whole


def test_the_launcher_s_next_generation_takes_over_from_a_killed_rank_0_at_once(folder, start):
    launcher = start(LAUNCHER, "--max-restarts", "1")
    os.kill(current(folder / "run").owner.pid, signal.SIGKILL)
    rest = launcher.stderr.read()
    assert launcher.wait() == 0, rest
    assert "killed by SIGKILL" in rest and "Watching" not in rest
    assert json.loads((folder / "run" / "state.json").read_text())["status"] == "done"
    assert current(folder / "run").number == 2 and current(folder / "run").is_released


def test_who_has_lost_the_directory_does_not_touch_its_state(folder):
    config, run_dir = load(folder / "base.yaml"), folder / "run"
    with Lease() as lease:
        ranks = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, node=0)
        record = RunRecord(run_dir, lease.take(run_dir), config, ranks, generation=0, total_steps=22)
        record.begin()
        record.update("running", TrainState(step=3))
    before = tree(run_dir)
    for write in (record.begin, lambda: record.update("running", TrainState(step=4))):
        with pytest.raises(UserError, match="was given back"):
            write()
    assert tree(run_dir) == before and json.loads((run_dir / "state.json").read_text())["step"] == 3


def test_a_training_that_comes_back_after_a_takeover_ends_with_3_and_changes_nothing(run_ranks, folder, start, whole):
    run_dir = folder / "run"
    zombie = start(PLAIN)
    zombie.send_signal(signal.SIGSTOP)
    os.waitpid(zombie.pid, os.WUNTRACED)
    # A stopped owner on this host lives. Let it look like one whose process id was given to another.
    claim = claim_path(run_dir, 1)
    claim.write_bytes(re.sub(rb'"started": (\d)', rb'"started": 9\1', claim.read_bytes()))
    assert run_ranks(train, 2, folder, "base.yaml", "run", *OFTEN) == [0, 0]
    before = tree(run_dir)
    zombie.send_signal(signal.SIGCONT)
    said = zombie.stderr.read()
    assert zombie.wait() == 3, said
    assert "this process must not write there any more" in said and "Traceback" not in said
    assert tree(run_dir) == before
    assert result(run_dir) == whole
