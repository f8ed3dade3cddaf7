"""A training that writes in the background ends as one that does not, whatever becomes of the process that writes."""

import json
import os
import signal
import threading

import pytest

from dist_train.checkpoint.store import CheckpointStore, read_checked, verify
from tests.distributed.test_begun import SHIFTY
from tests.distributed.training import result, train, write_configs
from tests.unit.dist_train.checkpoint.savers import writers

OFTEN = "checkpoint.every=2 steps"
BACKGROUND = "checkpoint.background=true"


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


def _contents(run_dir):
    found = {}
    for path in CheckpointStore(run_dir / "checkpoints").all():
        manifest = verify(path)
        found[path.name] = {name: read_checked(path, name, manifest) for name in manifest["files"]}
    return found


def _log(run_dir):
    return (run_dir / "logs" / "rank0.log").read_text()


@pytest.mark.parametrize("config", ["base.yaml", "adam.yaml"])
def test_checkpoints_and_results_are_the_same(run_ranks, folder, config):
    assert run_ranks(train, 1, folder, config, "front", OFTEN, "checkpoint.background=false") == [0]
    assert run_ranks(train, 2, folder, config, "back", OFTEN, BACKGROUND, "train.stop_after=9 steps") == [0, 0]
    state = json.loads((folder / "back" / "state.json").read_text())
    assert (state["status"], state["step"]) == ("stopped", 9)
    assert "step-00000009" in _contents(folder / "back"), "durable before the process ends"
    assert run_ranks(train, 1, folder, config, "back", OFTEN, BACKGROUND) == [0]
    assert result(folder / "back") == result(folder / "front")
    assert _contents(folder / "back") == _contents(folder / "front")


def _train_and_kill_the_writer(ranks, *arguments):
    """Kills the first process that writes for this rank; returns the exit code and how many were killed."""
    killed, over = [], threading.Event()

    def kill():
        while not killed and not over.wait(0.001):
            for pid in writers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        return train(ranks, *arguments), len(killed)
    finally:
        over.set()
        thread.join()


def test_a_killed_writer_ends_nothing(run_ranks, folder, whole):
    assert run_ranks(_train_and_kill_the_writer, 1, folder, "base.yaml", "run", OFTEN, BACKGROUND) == [(0, 1)]
    assert result(folder / "run") == whole


def test_a_save_under_way_is_finished_when_the_training_ends_by_an_error(run_ranks, folder):
    """The first evaluation, after step 11, does not know the metric; the save of step 10 is under way by then."""
    arguments = ("checkpoint.every=10 steps", BACKGROUND, SHIFTY, "eval.best=late")
    assert run_ranks(train, 1, folder, "base.yaml", "run", *arguments) == [10]
    assert [*_contents(folder / "run")] == ["step-00000010"]
    assert json.loads((folder / "run" / "state.json").read_text())["step"] == 10


def _train_and_stop_it(ranks, folder, *arguments):
    """Asks the run to stop as soon as a process writes for it."""
    over = threading.Event()

    def stop():
        while not over.wait(0.001):
            if writers():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        return train(ranks, folder, *arguments)
    finally:
        over.set()
        thread.join()


def test_a_run_that_is_stopped_in_a_save_saves_once_more(run_ranks, folder, whole):
    assert run_ranks(_train_and_stop_it, 1, folder, "base.yaml", "run", OFTEN, BACKGROUND) == [143]
    state = json.loads((folder / "run" / "state.json").read_text())
    assert state["signal"] == "SIGTERM" and 2 < state["step"] < 22
    assert max(_contents(folder / "run")) == f"step-{state['step']:08d}"
    assert run_ranks(train, 2, folder, "base.yaml", "run") == [0, 0]
    assert result(folder / "run") == whole
