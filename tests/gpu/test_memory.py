"""Page-locked memory for saves, with the real runtime."""

import pytest
import torch

from dist_train.checkpoint.buffers import Buffers
from tests.gpu.conftest import NO_GPU
from tests.gpu.placed import environment


def _locked_twice(ranks):
    buffers, state = Buffers(), {"w": torch.ones(1_000_000, device="cuda")}
    buffers.take({"model": state})
    was_locked = buffers._pinned
    buffers._pin()  # which fails: it is locked already
    refused = not buffers._pinned
    again = (torch.ones(10, device="cuda") + 1).sum().item()
    torch.cuda.synchronize()
    buffers._pinned = was_locked
    begin, length = buffers.take({"model": {"w": state["w"] * 3}})["model"]
    last = torch.frombuffer(buffers.memory[begin + length - 4 : begin + length], dtype=torch.float32).item()
    buffers.take({"model": {"w": torch.ones(3_000_000, device="cuda")}})  # grows: unlocked, and locked anew
    buffers.close()
    return was_locked, refused, again, last


ON_A_GPU = pytest.mark.parametrize("device", [pytest.param("cuda", marks=NO_GPU)])


@ON_A_GPU
def test_a_refused_lock_does_not_fail_the_next_kernel(run_ranks, device):
    (found,) = run_ranks(_locked_twice, 1, environment=environment(device))
    assert found == (True, True, 20.0, 3.0)
