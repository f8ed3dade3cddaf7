"""Parameters that the config freezes."""

import pytest
import torch
from torch import nn

from dist_train import models
from dist_train.config.schema import Cnn, Mlp
from dist_train.errors import UserError
from dist_train.evaluate import evaluating
from dist_train.randomness import Generators


def build(config):
    told = []
    return models.build(config, shape=(1, 8, 8), classes=3, seed=0, note=told.append), told


def test_what_matches_is_not_trained_and_its_batchnorm_keeps_its_statistics():
    model, told = build(Cnn(width=4, freeze=["block1.*", "block2.0.weight"]))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "block1.0.weight", "block1.1.weight", "block1.1.bias", "block2.0.weight",
    ]  # fmt: skip
    assert told == ["model.freeze: 4 of 11 parameters, 332 numbers, stay as they are; 1 norms keep their statistics"]
    with evaluating(model, 0, Generators(model)):
        assert not model.training
    model(torch.rand(6, 1, 8, 8))
    assert not model.block1[1].running_mean.any() and model.block2[1].running_mean.any()


def test_a_batchnorm_whose_weights_alone_are_frozen_goes_on_counting():
    model, _ = build(Cnn(width=4, freeze=["block1.1.weight", "block1.1.bias"]))
    model(torch.rand(6, 1, 8, 8))
    assert model.block1[1].training and model.block1[1].running_mean.any()


def test_a_batchnorm_that_keeps_its_statistics_does_so_as_syncbatchnorm():
    model, _ = build(Cnn(width=4, freeze=["block1.*"], sync_batchnorm=True))
    assert isinstance(model.block1[1], nn.SyncBatchNorm)
    assert (model.block1[1].training, model.block2[1].training) == (False, True)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["*"], "all parameters are frozen, and nothing is left to train"),
        (["1.*", "lyer"], "model.freeze: no name matches 'lyer'; there is 1.bias, 1.weight, 3.bias"),
        (["3"], r"model.freeze: no name matches '3'; all that is in it is 3\.\*"),
    ],
)
def test_what_cannot_be_frozen_is_told(patterns, message):
    with pytest.raises(UserError, match=message):
        build(Mlp(freeze=patterns))
