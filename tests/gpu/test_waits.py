"""The host does not wait for the device inside of a step, and not forever outside of it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distributed.training import result
from tests.gpu.placed import environment, place, train_on

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default}


class _NoReads(TorchDispatchMode):
    """Refuses what hands a number of a tensor to Python, which on a GPU waits for all that it was made of."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function in READS:
            raise AssertionError(f"{function} inside of a step")
        return function(*arguments, **(named or {}))


def _watched(ranks, device, *arguments):
    from dist_train import loop

    place(device)
    step = loop.train_step

    def watched(*given):
        if device == "cuda" and given[1].step > 2:  # the first steps have kernels to choose and memory to find
            torch.cuda.set_sync_debug_mode("error")
        try:
            with _NoReads():
                return step(*given)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    loop.train_step = watched
    return train_on(ranks, device, None, *arguments)


def test_a_step_reads_nothing_back(run_ranks, folder, device):
    """By torch's dispatcher, and on a GPU by CUDA's own check too, which raises where the host waits."""
    run_ranks(_watched, 1, device, folder, "run", environment=environment(device))
    _, rows, _ = result(folder / "run")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def _reading(ranks, device, *arguments):
    from dist_train.trainer import Trainer

    update = Trainer.update

    def reading(self, state, lr, losses):
        float(next(iter(losses.values())))
        return update(self, state, lr, losses)

    Trainer.update = reading
    try:
        return _watched(ranks, device, *arguments)
    except AssertionError as error:
        return str(error)


def test_a_read_would_be_found(run_ranks, folder, device):
    (said,) = run_ranks(_reading, 1, device, folder, "run", environment=environment(device))
    assert said == "aten._local_scalar_dense.default inside of a step"
