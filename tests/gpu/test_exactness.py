"""The same bits: a second time, after a stop, on several ranks, and whatever the streams do."""

import pytest

from tests.distributed.training import result
from tests.gpu.placed import environment, pause, place, several_ranks_on_one_gpu, train_on

FP32, BF16, FP16 = (f"train.precision={name}" for name in ("fp32", "bf16", "fp16"))
LAST = "model.channels_last=true"


def _long(*values):
    """Not in `make test`, whose drawn configs have it on a CPU; the script of the checks runs it."""
    return pytest.param(*values, marks=pytest.mark.long)


def _run(run_ranks, world_size, device, folder, run, *overrides):
    backend = "nccl" if world_size == 1 else several_ranks_on_one_gpu()
    arguments = (device, backend, folder, run, *overrides)
    assert run_ranks(train_on, world_size, *arguments, timeout=150, environment=environment(device)) == [0] * world_size
    return result(folder / run)


@pytest.mark.parametrize("precision", [_long(FP32), BF16, _long(FP16)])
def test_again_and_in_pieces(run_ranks, folder, device, precision):
    """Weights, and every line of the metrics: gradient norms before clipping among them."""
    whole = _run(run_ranks, 1, device, folder, "whole", precision, LAST)
    assert _run(run_ranks, 1, device, folder, "again", precision, LAST) == whole
    _run(run_ranks, 1, device, folder, "pieces", precision, LAST, "train.stop_after=4 steps")
    assert _run(run_ranks, 1, device, folder, "pieces", precision, LAST) == whole


@pytest.mark.parametrize("overrides", [_long([FP32]), _long([FP32, LAST]), [BF16, LAST], [FP16]], ids=" ".join)
def test_one_two_and_three_ranks(run_ranks, folder, device, overrides):
    alone = _run(run_ranks, 1, device, folder, "1", *overrides)
    for world_size in (2, 3):
        assert _run(run_ranks, world_size, device, folder, f"{world_size}", *overrides) == alone


def _paused(ranks, which, device, backend, *arguments):
    """With pauses in the stream (on a CPU the thread) of the sums, or in that of the backward."""
    from dist_train import loop
    from dist_train.parallel import overlap

    place(device, backend)
    if which == "sums":
        runner = overlap.SideStream if device == "cuda" else overlap.SideThread
        submit = runner.submit
        runner.submit = lambda self, work, **how: submit(self, lambda: (pause(device), work())[1], **how)
    else:
        step = loop.train_step
        loop.train_step = lambda *given: (pause(device), step(*given), pause(device))[1]
    return train_on(ranks, device, backend, *arguments)


@pytest.mark.parametrize("which", ["sums", "backward"])
def test_neither_stream_may_be_late(run_ranks, folder, device, which):
    """A sum that was read before it was there, or memory that was used again before it was read, would show."""
    whole = _run(run_ranks, 1, device, folder, "whole")
    backend = several_ranks_on_one_gpu()
    arguments = (which, device, backend, folder, "late")
    run_ranks(_paused, 2, *arguments, timeout=150, environment=environment(device))
    assert result(folder / "late") == whole
