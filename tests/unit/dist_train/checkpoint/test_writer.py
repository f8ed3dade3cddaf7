"""The process that writes: what it writes, that nothing but its rank ends it, and what follows when it is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dist_train.checkpoint.state import TrainState
from dist_train.checkpoint.store import CheckpointStore, read_checked, verify
from dist_train.errors import ExitCode, UserError
from dist_train.rundir.lease import Lease
from tests.unit.dist_train.checkpoint.savers import PATIENCE, Gate, Saver, gone, until, writers

ROOT = Path(__file__).resolve().parents[4]
STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture
def make(tmp_path):
    """Builds savers that write in the background, and leaves none of their processes behind."""
    made = []

    def build(fence=None, folder="checkpoints", background=True, **options):
        made.append(Saver(tmp_path / folder, fence, background=background, **options))
        return made[-1]

    yield build
    for pid in writers():  # those that a gate holds would keep us waiting
        os.kill(pid, signal.SIGKILL)
    for saver in made:
        saver.manager.end()


@pytest.fixture
def held(make, tmp_path):
    """A saver with step 1 on disk and the save of step 2 held right before its rename, its writer, and the gate."""
    gate = Gate(tmp_path)
    saver = make(gate.fence, write_timeout_s=PATIENCE)
    saver.manager.save(TrainState(step=1))
    saver.manager.drain()
    gate.shut()
    saver.manager.save(TrainState(step=2))
    gate.hold_before_the_rename(saver.store.folder)
    (writer,) = writers()
    return saver, writer, gate


def _content(path):
    manifest = verify(path)
    return {name: read_checked(path, name, manifest) for name in manifest["files"]}


def test_the_content_is_the_same_in_the_foreground_and_in_the_background(make):
    paths = []
    for folder, background in (("a", False), ("b", True)):
        saver = make(folder=folder, background=background)
        saver.momentum = torch.linspace(0, 1, 777, dtype=torch.bfloat16)
        saver.manager.save(TrainState(step=5, metrics={"accuracy": 0.5}))
        saver.manager.close()
        paths.append(saver.manager.last)
    assert _content(paths[0]) == _content(paths[1])
    facts = [{k: v for k, v in verify(path).items() if k not in ("saved", "sha256")} for path in paths]
    assert facts[0] == facts[1]
    expected = safetensors.torch.save({"w/momentum": saver.momentum})
    assert _content(paths[0])["optimizer.safetensors"] == expected


def test_a_save_holds_what_was_there_when_it_was_asked_for(make):
    """One at a time, and one after the other: all share one memory."""
    saver = make()
    for step in range(1, 6):
        saver.weights = torch.full((50_000 * step,), float(step))  # the memory grows, too
        saver.manager.save(TrainState(step=step))
        assert saver.saved == list(range(1, step)), "the one before was not waited for"
        saver.weights.fill_(-1)
        path = saver.store.path(step - 1)
        if step > 1:
            saved = safetensors.torch.load(_content(path)["model.safetensors"])["w"]
            assert torch.equal(saved, torch.full((50_000 * (step - 1),), step - 1.0))
    saver.manager.close()
    assert saver.saved == [1, 2, 3, 4, 5] and saver.manager.last == saver.store.path(5)
    assert saver.names() == ["step-00000004", "step-00000005"], "retention follows in the background"


def test_a_tick_tells_of_a_save_once_it_is_durable(held):
    saver, _, gate = held
    saver.manager.tick()
    assert saver.saved == [1] and saver.manager.last == saver.store.path(1)
    gate.open()

    def told():
        saver.manager.tick()
        return saver.saved == [1, 2]

    until(told)
    assert saver.manager.last == saver.store.path(2)


def test_a_writer_killed_in_a_save_costs_nothing(held):
    """Its copy of the state is still there, and is written without it: the last save of a run must not be lost."""
    saver, writer, gate = held
    os.kill(writer, signal.SIGKILL)
    gate.open()
    saver.weights.fill_(-1)  # the training has gone on meanwhile
    saver.manager.drain()
    assert saver.notes == ["the process that saves was killed: step 2 was saved without it"]
    content = _content(saver.store.path(2))["model.safetensors"]
    assert (safetensors.torch.load(content)["w"] != -1).all()
    saver.manager.save(TrainState(step=3))
    assert writers() != [writer]
    saver.manager.close()
    assert saver.saved == [1, 2, 3]
    assert saver.names() == ["step-00000002", "step-00000003"], "what the dead one had begun is removed"


def test_a_writer_killed_between_two_saves_costs_nothing(make):
    saver = make()
    for step in (1, 2):
        saver.manager.save(TrainState(step=step))
        saver.manager.drain()
        (writer,) = writers()
        with gone(writer):
            os.kill(writer, signal.SIGKILL)
    saver.manager.close()
    assert saver.saved == [1, 2] and saver.notes == []


def test_a_save_that_comes_to_no_end_is_given_up(make, tmp_path):
    gate = Gate(tmp_path)
    saver = make(gate.fence, write_timeout_s=0.2)
    gate.shut()
    saver.manager.save(TrainState(step=1))
    gate.hold_before_the_rename(saver.store.folder)
    saver.manager.drain()
    assert writers() == [] and saver.saved == []
    assert saver.notes[0].startswith("step 1 not saved (not done after 0.2 s);")
    with pytest.raises(UserError) as error:
        saver.manager.close()
    assert error.value.code == ExitCode.CHECKPOINT_IO


def test_what_asks_a_run_to_stop_does_not_end_a_save(held):
    saver, writer, gate = held
    for number in STOPPING:
        os.kill(writer, number)
    gate.open()
    saver.manager.close()
    assert saver.saved == [1, 2] and saver.notes == []


def test_it_may_be_asked_to_stop_before_it_has_begun(make):
    saver = make()
    saver.manager.save(TrainState(step=1))
    for number in STOPPING:  # Python is not up yet in there
        os.kill(writers()[0], number)
    saver.manager.close()
    assert saver.saved == [1] and saver.notes == []


def test_a_lost_lease_ends_the_training_as_it_does_in_the_foreground(make, tmp_path):
    with Lease() as lease:
        saver = make(lease.take(tmp_path))
        saver.manager.save(TrainState(step=1))
        saver.manager.drain()
    saver.manager.save(TrainState(step=2))
    with pytest.raises(UserError, match="must not write there any more") as error:
        saver.manager.drain()
    assert error.value.code == ExitCode.OWNED
    assert saver.names() == ["step-00000001"]


def test_a_mistake_in_the_facts_is_raised_here(make):
    saver = make()
    saver.manager.save(TrainState(step=1, metrics={"odd": {1, 2}}))
    with pytest.raises(TypeError, match="not JSON serializable") as error:
        saver.manager.drain()
    assert "store.py" in error.value.__notes__[0]


RANK = """
import os, sys
from pathlib import Path
from dist_train.checkpoint.store import CheckpointStore
from dist_train.checkpoint.writer import Save, Writer
from tests.unit.dist_train.checkpoint.gated_fence import GatedFence
run_dir = Path(sys.argv[1])
store = CheckpointStore(run_dir / "checkpoints", fence=GatedFence(run_dir, 1, sys.argv[2]))
memory = os.memfd_create("state")
os.ftruncate(memory, 4096)
writer = Writer(store, memory)
writer.begin(Save(step=1, parts={"weights": (0, 4096)}, others={}, facts={"best_step": None}))
print(writer.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("saving", [True, False])
def test_it_dies_with_its_rank(tmp_path, saving):
    gate = Gate(tmp_path)
    command = [sys.executable, "-c", RANK, tmp_path, gate.fence.token]
    store = CheckpointStore(tmp_path / "checkpoints")
    if saving:
        gate.shut()
    rank = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    with rank, gone(int(rank.stdout.readline())):
        if saving:
            gate.hold_before_the_rename(store.folder)
        else:
            until(store.all)
        rank.kill()
    assert [path.name for path in store.all()] == ([] if saving else ["step-00000001"])


def test_it_holds_no_end_of_its_rank_s_output(make):
    """Who reads what a run prints would wait for it."""
    saver = make()
    saver.manager.save(TrainState(step=1))
    saver.manager.drain()
    (writer,) = writers()
    assert os.readlink(f"/proc/{writer}/fd/1") == os.readlink(f"/proc/{writer}/fd/0") == "/dev/null"


def test_it_starts_without_torch(make):
    saver = make()
    saver.manager.save(TrainState(step=1))
    saver.manager.drain()
    maps = Path(f"/proc/{writers()[0]}/maps").read_text()
    assert "python" in maps and "site-packages" not in maps
