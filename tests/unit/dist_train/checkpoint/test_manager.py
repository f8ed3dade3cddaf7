"""A disk that refuses: the training goes on, the older checkpoints stay, and after some time it ends with 14. In the
foreground and in the background."""

import os
import resource
import threading
from contextlib import contextmanager, suppress

import pytest

from dist_train.checkpoint.manager import PAYS_FROM
from dist_train.checkpoint.state import TrainState
from dist_train.errors import ExitCode, UserError
from tests.end_to_end.test_launcher import until
from tests.unit.dist_train.checkpoint.savers import Saver, writers


@contextmanager
def files_may_have(size):
    """Writing more is EFBIG, from the kernel, here and in the process that writes."""
    pids = [os.getpid(), *writers()]
    before = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
    for pid, (_, hard) in zip(pids, before, strict=True):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    def lift() -> None:
        for pid, limits in zip(pids, before, strict=True):
            with suppress(ProcessLookupError):  # the manager has ended it
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    try:
        yield lift
    finally:
        lift()


@pytest.fixture(params=[False, True], ids=["foreground", "background"])
def saver(tmp_path, request):
    saver = Saver(tmp_path / "checkpoints", background=request.param)
    yield saver
    assert len(writers()) <= 1
    saver.manager.end()
    assert writers() == []


def _save(saver, *steps):
    for step in steps:
        saver.manager.save(TrainState(step=step))
        saver.manager.drain()


def test_a_failed_save_is_said_and_survived(saver):
    _save(saver, 1)
    with files_may_have(20_000):
        _save(saver, 2)
    assert len(saver.notes) == 1
    assert saver.notes[0].startswith("step 2 not saved (File too large: ")
    assert saver.notes[0].endswith("; training goes on, the older checkpoints are intact")
    _save(saver, 3)
    saver.manager.close()
    assert saver.saved == [1, 3]
    assert saver.manager.last == saver.store.path(3)
    assert saver.names() == ["step-00000001", "step-00000003"]


def test_a_disk_that_refuses_for_a_moment_ends_nothing_however_many_saves_it_takes(saver):
    _save(saver, 1)
    with files_may_have(20_000):
        _save(saver, *range(2, 10))
    _save(saver, 10)
    assert [note.split(" ")[2] for note in saver.notes] == ["not", "not", "not", "saved:"]
    assert saver.notes[-1] == "step 10 saved: the disk takes checkpoints again"
    saver.manager.close()


def test_three_in_a_row_end_the_training_after_a_minute(tmp_path):
    saver = Saver(tmp_path / "checkpoints", background=False, patience_s=0.0)
    _save(saver, 1)
    with files_may_have(20_000), pytest.raises(UserError, match="the last 3 saves failed") as error:
        _save(saver, 2, 3, 4)
    assert error.value.code == ExitCode.CHECKPOINT_IO
    assert len(saver.notes) == 3 and saver.store.newest().manifest["step"] == 1


def test_a_failed_last_save_ends_with_14(saver):
    _save(saver, 1)
    with files_may_have(20_000):
        saver.manager.save(TrainState(step=2))
        with pytest.raises(UserError) as error:
            saver.manager.close()
    assert error.value.code == ExitCode.CHECKPOINT_IO


def test_the_last_save_is_tried_again_for_as_long_as_nobody_asks_to_stop(saver):
    _save(saver, 1)
    with files_may_have(20_000) as lift:
        waiting = threading.Thread(target=lambda: (until(lambda: len(saver.notes) == 2), lift()))
        waiting.start()
        saver.manager.save(TrainState(step=2))
        saver.manager.close(may_wait=True)
        waiting.join()
    assert saver.saved == [1, 2] and saver.store.newest().manifest["step"] == 2
    assert saver.notes[1:] == [
        "waiting up to 60 s for the disk to take the last checkpoint",
        "step 2 saved: the disk takes checkpoints again",
    ]


def test_a_state_that_there_is_no_memory_for_is_a_failed_save(saver):
    with files_may_have(20_000):
        _save(saver, 1)
    assert [note.split(";")[0].split(":")[0] for note in saver.notes] == ["step 1 not saved (File too large"]
    _save(saver, 2)
    assert saver.saved == [2]


@pytest.mark.parametrize("size", [PAYS_FROM // 2, PAYS_FROM])
def test_auto_goes_by_the_size_of_the_state(tmp_path, size):
    saver = Saver(tmp_path / "checkpoints")
    saver.weights = saver.weights.new_zeros(size // 4)
    saver.manager.save(TrainState(step=1))
    assert len(writers()) == (size >= PAYS_FROM)
    saver.manager.close()
    assert saver.saved == [1] and writers() == []
