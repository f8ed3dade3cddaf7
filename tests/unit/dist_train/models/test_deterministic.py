"""Which modules a GPU cannot work off deterministically: torch's own list, and what torchvision builds."""

import re

import pytest
import torch
from torch import nn

from dist_train import models
from dist_train.commands.describe import describe
from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from dist_train.models.deterministic import _ON_A_GPU, check_deterministic, without_deterministic_form

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_MODULE_OF_A_MODEL = {"NLLLoss", "CTCLoss"}


def config(model, **more):
    batch = {"microbatches": 8, "global_size": 64}
    sections = {"data": {"name": "synthetic", "shape": [3, 64, 64]}, "model": {"name": model}, "batch": batch, **more}
    return RunConfig.model_validate(sections)


def built(run):
    with torch.device("meta"):  # weights make no difference, and take seconds
        return models.build(run.model, shape=(3, 64, 64), classes=10, seed=0)


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_adaptive_pooling_is_named_before_the_first_step_and_only_where_it_matters(name):
    run = config(name)
    with pytest.raises(UserError, match=r"no deterministic backward for avgpool \(AdaptiveAvgPool2d\)") as refused:
        check_deterministic(run, built(run), CUDA, 2)
    assert refused.value.code == 2 and "\n" not in str(refused.value)
    check_deterministic(run, built(run), CPU, 2)
    check_deterministic(config(name, exact=False), built(run), CUDA, 2)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "cnn", "resnet_cifar"])
def test_what_is_an_ordinary_mean_is_none(name):
    run = config(name)
    check_deterministic(run, built(run), CUDA, 2)


def test_the_list_has_every_module_that_torch_documents():
    text = torch.use_deterministic_algorithms.__doc__.partition("operations will throw a")[2]
    documented = {*re.findall(r":class:`torch\.nn\.(\w+)` when|:class:`torch\.nn\.(\w+)`\n", text)}
    names = {one or other for one, other in documented} - NO_MODULE_OF_A_MODEL
    assert len(names) > 8
    known = {kind.__name__ for kinds, _ in _ON_A_GPU for kind in kinds}
    assert names <= known


def test_modules_are_told_apart_by_what_they_do():
    model = nn.Sequential(
        nn.AdaptiveAvgPool1d(4),
        nn.AdaptiveAvgPool2d((1, 2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 1, 3, padding=1),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.EmbeddingBag(3, 3),
        nn.EmbeddingBag(3, 3, mode="max"),
        nn.AdaptiveMaxPool2d(1),
        nn.AdaptiveAvgPool2d((None, 1)),
    )
    assert [name.partition(" ")[0] for name in without_deterministic_form(model)] == [
        "0",
        "1",
        "3",
        "6",
        "8",
        "9",
        "10",
    ]


def test_a_synchronised_batchnorm_of_the_users_own_needs_even_shares():
    model = nn.Sequential(nn.Linear(3, 3), nn.SyncBatchNorm(3))
    check_deterministic(config("mlp"), model, CPU, 4)
    with pytest.raises(UserError, match="8 do not divide among 3 ranks: start a number of ranks that divides 8, or"):
        check_deterministic(config("mlp"), model, CPU, 3)


def test_a_dry_run_knows_it_too():
    with torch.device("meta"):
        facts = describe(config("alexnet"))
        assert "avgpool (AdaptiveAvgPool2d)" in facts.not_on_a_gpu and facts.problem is None
        assert describe(config("alexnet", exact=False)).not_on_a_gpu is None
