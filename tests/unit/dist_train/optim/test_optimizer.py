"""Optimizers: which parameters decay, and steps equal to torch's own."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dist_train import models
from dist_train.config.schema import AdamW, Cnn, CustomOptimizer, ResnetCifar, Sgd
from dist_train.errors import UserError
from dist_train.optim.ema import Ema
from dist_train.optim.groups import parameter_groups
from dist_train.optim.optimizer import build_optimizer


def small_model() -> nn.Module:
    return models.build(Cnn(width=4), shape=(1, 8, 8), classes=3, seed=0)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    inputs = torch.randn(6, 1, 8, 8, generator=generator)
    nn.functional.cross_entropy(model(inputs), torch.arange(6) % 3).backward()
    optimizer.step()


def test_weights_decay_norms_and_biases_do_not():
    model = models.build(ResnetCifar(depth=8), shape=(3, 32, 32), classes=10, seed=0)
    decay, still = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decay["weight_decay"], still["weight_decay"]) == (0.1, 0.0)
    assert all(names[id(p)].endswith("weight") and p.ndim in (2, 4) for p in decay["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in still["params"])
    assert len(decay["params"]) + len(still["params"]) == len(names)


def test_norms_over_several_dimensions_do_not_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm([2, 6, 6]))
    (decay, still) = parameter_groups(model, 0.1)
    assert [p.ndim for p in decay["params"]] == [4]
    assert sorted(p.ndim for p in still["params"]) == [1, 3, 3]


def test_frozen_parameters_are_left_out_and_tied_ones_are_there_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    model[2].weight = model[1].weight
    groups = parameter_groups(model, 0.1)
    assert [len(group["params"]) for group in groups] == [1, 2]
    model.requires_grad_(False)
    with pytest.raises(UserError, match="no parameters to train"):
        build_optimizer(Sgd(), model)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (
            Sgd(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
            lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
        ),
        (
            AdamW(lr=0.01, betas=[0.8, 0.99], eps=1e-6, weight_decay=0.1),
            lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_steps_are_those_of_torch(config, reference):
    ours, theirs = small_model(), small_model()
    optimizer = build_optimizer(config, ours)
    assert all(group["fused"] for group in optimizer.param_groups)
    plain = reference(parameter_groups(theirs, config.weight_decay))
    for step in range(5):
        one_step(ours, optimizer, step)
        one_step(theirs, plain, step)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Lookahead(torch.optim.SGD):
    """An optimizer as a user would bring one."""

    def __init__(self, params, lr: float, slow: int = 5) -> None:
        super().__init__(params, lr=lr)
        self.slow = slow


def not_an_optimizer(params, lr):
    return "no"


def test_the_users_own():
    config = CustomOptimizer(name=f"{__name__}:Lookahead", args={"slow": 3}, lr=0.2, weight_decay=0.1)
    optimizer = build_optimizer(config, small_model())
    assert isinstance(optimizer, Lookahead) and optimizer.slow == 3
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.1), (0.2, 0.0)]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("Lookahead", {"slwo": 3}, r"Lookahead\(params, lr, slow=5\).*slwo"),
        ("not_an_optimizer", {}, "gave a str, no torch.optim.Optimizer"),
    ],
)
def test_the_users_own_with_a_mistake(name, args, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(CustomOptimizer(name=f"{__name__}:{name}", args=args, lr=0.1), small_model())


def trained(steps: int, ema: Ema, model: nn.Module, first: int = 0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(first, first + steps):
        one_step(model, optimizer, step)
        ema.update(model)


def test_ema_is_torchs_average_with_integers_copied():
    model = small_model()
    ours = Ema(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        one_step(model, optimizer, step)
        ours.update(model)
        theirs.update_parameters(model)
    reference = theirs.module.state_dict()
    for name, tensor in ours.module.state_dict().items():
        expected = model.state_dict()[name] if name.endswith("num_batches_tracked") else reference[name]
        assert torch.equal(tensor, expected), name
        assert tensor.is_floating_point() or tensor.item() == 6
    assert ours.state({})["n_averaged"].item() == theirs.n_averaged.item() == 6


def test_ema_goes_on_where_it_stopped():
    model = small_model()
    whole = Ema(model, 0.8)
    trained(3, whole, model)
    saved = {name: tensor.clone() for name, tensor in whole.state({}).items()}
    other = copy.deepcopy(model)
    trained(3, whole, model, first=3)
    resumed = Ema(small_model(), 0.8)
    resumed.load(saved, None)
    trained(3, resumed, other, first=3)
    assert whole.state({}).keys() == resumed.state({}).keys()
    assert all(torch.equal(resumed.state({})[name], tensor) for name, tensor in whole.state({}).items())


def test_ema_leaves_the_model_alone():
    model = small_model()
    ema = Ema(model, 0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema.update(model)
    ema.module.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in before.items()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not ema.module.training
