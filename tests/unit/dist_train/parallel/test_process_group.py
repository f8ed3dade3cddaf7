"""A rank whose machine has GPUs that torch does not see says so, unless the CPU was asked for."""

import pytest
import torch

from dist_train.config.schema import DistributedConfig
from dist_train.errors import UserError
from dist_train.parallel.process_group import ProcessGroup, _gpus_here
from dist_train.parallel.ranks import Ranks

ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, node=0)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")


def backend(wanted):
    return ProcessGroup(ALONE, DistributedConfig(backend=wanted)).backend


def test_gpus_of_the_plan_that_torch_does_not_see_are_an_error_with_the_reason(monkeypatch):
    monkeypatch.setenv("DIST_TRAIN_GPUS", "2")
    with pytest.raises(UserError, match=r"this machine has 2 GPUs, and torch sees none \(.+\): ") as refused:
        backend("auto")
    assert refused.value.code == 2 and "\n" not in str(refused.value)
    assert backend("gloo") == "gloo"
    monkeypatch.setenv("DIST_TRAIN_GPUS", "0")
    assert backend("auto") == "gloo"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_the_user_has_hidden_are_none(monkeypatch, hidden):
    monkeypatch.delenv("DIST_TRAIN_GPUS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert _gpus_here() == 0
