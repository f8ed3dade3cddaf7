"""A disk that refuses: the training goes on, the older checkpoints stay, and the third time it ends with 14."""

import resource
from contextlib import contextmanager

import pytest
import torch

from dist_train.checkpoint.keeper import Checkpoints
from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.checkpoint.store import CheckpointStore
from dist_train.config.errors import ExitCode, UserError


@contextmanager
def files_may_have(size):
    """Writing more is EFBIG, from the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def kept(tmp_path):
    notes, saved = [], []
    state = {"w": torch.arange(10_000, dtype=torch.float32)}

    def capture(progress):
        return Snapshot(model=state, optimizer={}, ema=None, other={"progress": {"step": progress.step}})

    store = CheckpointStore(tmp_path, keep=2)
    keeper = Checkpoints(store, capture, {"global_batch": 4}, notes.append, lambda s: saved.append(s.step))
    return keeper, store, notes, saved


def test_a_failed_save_is_said_and_survived(kept):
    keeper, store, notes, saved = kept
    keeper.save(TrainState(step=1))
    with files_may_have(20_000):
        keeper.save(TrainState(step=2))
    assert notes == [
        f"step 2 not saved (File too large: {store.folder}); training goes on, the older checkpoints are intact"
    ]
    keeper.save(TrainState(step=3))
    keeper.close()
    assert saved == [1, 3]
    assert [path.name for path in store.all()] == ["step-00000003", "step-00000001"]
    assert {path.name for path in store.folder.iterdir()} == {"step-00000003", "step-00000001"}


def test_three_in_a_row_end_the_training(kept):
    keeper, store, notes, _ = kept
    keeper.save(TrainState(step=1))
    with files_may_have(20_000), pytest.raises(UserError, match="the last 3 saves failed") as error:
        for step in (2, 3, 4):
            keeper.save(TrainState(step=step))
    assert error.value.code == ExitCode.CHECKPOINT_IO
    assert len(notes) == 3 and store.newest().manifest["step"] == 1


def test_a_failed_last_save_ends_with_14(kept):
    keeper, *_ = kept
    keeper.save(TrainState(step=1))
    with files_may_have(20_000):
        keeper.save(TrainState(step=2))
    with pytest.raises(UserError) as error:
        keeper.close()
    assert error.value.code == ExitCode.CHECKPOINT_IO
