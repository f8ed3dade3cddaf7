"""configs/cifar10_94.yaml in a small form: alternating flips, mirrored evaluation, Muon on filters, a fixed layer."""

from pathlib import Path

import pytest
import torch

from dist_train.config.schema import Muon
from dist_train.evaluate import both_ways
from dist_train.optim.muon import FilterMuon
from dist_train.optim.optimizer import build_optimizer
from examples.airbench import Net, whitening
from tests.distributed.training import result, train

RECIPE = Path(__file__).parents[2] / "configs" / "cifar10_94.yaml"
SMALL = (
    "data={name: synthetic, shape: [3, 32, 32], size: 96, eval_size: 40}",
    "model.args={widths: [4, 8, 8]}",
    "batch={global_size: 24, microbatches: 6}",
    "train={duration: 2 epochs, sanity_check: false}",
    "schedule.warmup=2 steps",
    "eval.batch_size=16",
    "checkpoint.every=3 steps",
    "tracking={samples: true, wandb: {mode: disabled}}",
)


def test_it_ends_in_the_same_bits_on_1_2_3_ranks_and_after_a_stop(run_ranks, tmp_path):
    assert run_ranks(train, 1, tmp_path, RECIPE, "w1", *SMALL) == [0]
    assert run_ranks(train, 3, tmp_path, RECIPE, "pieces", *SMALL, "train.stop_after=5 steps") == [0, 0, 0]
    assert run_ranks(train, 2, tmp_path, RECIPE, "pieces", *SMALL) == [0, 0]
    assert result(tmp_path / "pieces") == result(tmp_path / "w1")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_filter_bank_is_stepped_as_the_matrix_that_it_is(memory_format):
    """As torch's own Muon steps a linear layer with the same numbers; the order of the columns is the memory's."""
    generator = torch.Generator().manual_seed(0)
    filters, gradient = (torch.randn(6, 4, 3, 3, generator=generator) for _ in range(2))

    def flat(tensor):
        moved = tensor.movedim(1, -1) if memory_format == torch.channels_last else tensor
        return moved.reshape(6, -1).clone()

    options = {"lr": 0.1, "momentum": 0.6, "nesterov": True, "weight_decay": 0.01}
    ours = torch.nn.Parameter(filters.clone(memory_format=memory_format))
    theirs = torch.nn.Parameter(flat(filters))
    for kind, parameter, grad in ((FilterMuon, ours, gradient), (torch.optim.Muon, theirs, flat(gradient))):
        optimizer = kind([{"params": [parameter]}], **options)
        for _ in range(3):
            parameter.grad = grad.clone(memory_format=torch.preserve_format)
            if grad.ndim == 4:
                parameter.grad = grad.contiguous(memory_format=memory_format)
            optimizer.step()
    assert torch.equal(flat(ours.detach()), theirs.detach())


def test_muon_takes_filters_but_neither_the_head_nor_what_is_frozen():
    model = Net(classes=10, widths=(4, 8, 8))
    notes = []
    optimizer = build_optimizer(Muon(name="muon", filters=True), model, note=notes.append)
    assert notes == ["optimizer muon: 6 matrices of hidden layers; adamw has 8 other parameters"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.first.weight) not in trained and id(model.head.weight) in trained


def test_the_first_layer_whitens_what_it_was_made_for():
    filters = whitening(eps=0.0)[:12].reshape(12, 12).double()
    assert torch.equal(whitening()[:12], -whitening()[12:])
    covariance = torch.linalg.inv(filters.T @ filters)  # of patches that these filters make white, up to a factor
    pixel, beside, across = (covariance[0, column] for column in (0, 1, 3))
    assert beside / pixel == pytest.approx(0.92, abs=1e-3) and across / pixel == pytest.approx(0.865, abs=1e-3)


def test_both_ways_is_the_mean_over_an_image_and_its_mirror_image():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2))
    images = torch.randn(5, 3, 4, 4)
    mirrored = both_ways(model)(images)
    assert torch.equal(mirrored, (model(images) + model(images.flip(3))) / 2)
    assert torch.equal(mirrored, both_ways(model)(images.flip(3)))
