"""Parameters that only sometimes take part in the loss: distributed.unused_parameters."""

import pytest
import torch
from torch import nn

from dist_train.checkpoint.store import CheckpointStore
from dist_train.errors import UserError
from dist_train.parallel.unused import check_all_have_gradients, with_all
from tests.distributed.training import result, train

BASE = """
name: t
data: {name: synthetic, shape: [3, 8, 8], classes: 4, size: 48, eval_size: 20}
model: {name: "tests.distributed.sometimes:LayerDrop"}
optimizer: {name: adamw, lr: 0.01}
batch: {global_size: 12, microbatches: 6}
train: {duration: 6 steps}
eval: {every: 4 steps, batch_size: 8}
checkpoint: {every: 100 steps}
tracking: {samples: true, wandb: {mode: disabled}}
distributed: {unused_parameters: allow, bucket_mb: 0.001}
"""
MODELS = ["LayerDrop", "Experts", "Heads"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "c.yaml").write_text(BASE)
    return tmp_path


@pytest.mark.parametrize("model", MODELS)
def test_they_end_in_the_same_bits(run_ranks, folder, model):
    wanted = f"model.name=tests.distributed.sometimes:{model}"
    assert run_ranks(train, 1, folder, "c.yaml", "1", wanted) == [0]
    assert run_ranks(train, 2, folder, "c.yaml", "2", wanted, "train.stop_after=2 steps") == [0, 0]
    assert run_ranks(train, 3, folder, "c.yaml", "2", wanted) == [0, 0, 0]
    assert result(folder / "1") == result(folder / "2")


def test_without_exact_sums_they_train_too(run_ranks, folder):
    assert run_ranks(train, 2, folder, "c.yaml", "r", "exact=false") == [0, 0]
    assert CheckpointStore(folder / "r" / "checkpoints").path(6).is_dir()


def test_by_default_they_are_refused_and_the_key_is_named(run_ranks, folder):
    assert run_ranks(train, 1, folder, "c.yaml", "r", "distributed.unused_parameters=refuse") == [2]
    with pytest.raises(UserError, match="sometimes take no part: distributed.unused_parameters=allow"):
        check_all_have_gradients(nn.Linear(1, 1).named_parameters())


def test_what_takes_part_has_the_gradient_that_it_had():
    torch.manual_seed(0)
    net, idle = nn.Linear(4, 3), nn.Linear(4, 3)
    inputs, parameters = torch.randn(5, 4), [*net.parameters(), *idle.parameters()]
    net(inputs).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad(set_to_none=True)
    loss = net(inputs).square().sum()
    total = with_all(loss, parameters)
    assert torch.equal(total, loss)
    total.backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(net.parameters(), expected, strict=True))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in idle.parameters())
    assert with_all(loss, list(net.parameters())) is loss
