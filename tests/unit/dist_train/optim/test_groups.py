"""Groups of parameters with rates of their own, layers that learn slower, and Muon."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from dist_train.checkpoint.optimizer_state import OptimizerState
from dist_train.config.schema import AdamW, Muon, MuonRest, ParameterGroup, Sgd
from dist_train.errors import UserError
from dist_train.optim.groups import layer_factors, scaled
from dist_train.optim.optimizer import build_optimizer


class Net(nn.Module):
    """An embedding, two blocks and a head, as a transformer names them."""

    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(self.norm(hidden))


def net(tied=False):
    torch.manual_seed(0)
    return Net(tied)


def step(model, optimizer, number):
    tokens = torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()


def rates(model, optimizer):
    """name -> (peak learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (pytest.approx(group["lr"], rel=1e-12), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


GROUPS = [
    ParameterGroup(match=["head.*"], lr=0.5),
    ParameterGroup(match=["embed.weight", "head.*"], weight_decay=0.0),
    ParameterGroup(match=["blocks.1.*"], lr=0.01, weight_decay=0.3),
]


@pytest.mark.parametrize("config", [Sgd, AdamW])
def test_each_parameter_has_the_rates_of_the_first_group_that_it_matches(config):
    model = net()
    found = rates(model, build_optimizer(config(lr=0.1, weight_decay=0.2, groups=GROUPS), model))
    assert found == {
        "embed.weight": (0.1, 0.0),
        "blocks.0.0.weight": (0.1, 0.0), "blocks.0.0.bias": (0.1, 0.0),
        "blocks.0.1.weight": (0.1, 0.2), "blocks.0.1.bias": (0.1, 0.0),
        "blocks.1.0.weight": (0.01, 0.0), "blocks.1.0.bias": (0.01, 0.0),
        "blocks.1.1.weight": (0.01, 0.3), "blocks.1.1.bias": (0.01, 0.0),
        "norm.weight": (0.1, 0.0), "norm.bias": (0.1, 0.0),
        "head.weight": (0.5, 0.2), "head.bias": (0.5, 0.0),
    }  # fmt: skip


def test_the_schedule_scales_each_group_and_leaves_others_alone_to_the_bit():
    model = net()
    plain = build_optimizer(Sgd(lr=0.1), model)
    assert [set(group) & {"lr_scale"} for group in plain.param_groups] == [set(), set()]
    assert scaled(0.1 / 3, plain.param_groups[0]) == 0.1 / 3
    grouped = build_optimizer(Sgd(lr=0.1, groups=GROUPS), model)
    assert {round(scaled(0.05, group), 12) for group in grouped.param_groups} == {0.05, 0.25, 0.005}


def test_layers_below_learn_slower():
    factors = layer_factors(net(), 0.5)
    by_part = {name.partition(".")[0] if "blocks" not in name else name[:8]: f for name, f in factors.items()}
    assert by_part == {"embed": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "norm": 1.0, "head": 1.0}
    model = net()
    config = Sgd(lr=0.1, layer_decay=0.5, groups=[ParameterGroup(match=["blocks.0.*"], lr=1.0)])
    found = rates(model, build_optimizer(config, model))
    assert [found[name][0] for name in ("embed.weight", "blocks.0.1.weight", "head.bias")] == [0.0125, 0.25, 0.1]


@pytest.mark.parametrize(
    ("name", "layers", "places"),
    [
        ("resnet18", 10, {"conv1": 0, "bn1": 0, "layer1.0.conv1": 1, "layer2.0.downsample.0": 3, "layer4.1.bn2": 8}),
        ("vit_b_32", 14, {"encoder.layers.encoder_layer_0.mlp.0": 1, "encoder.ln": 13, "heads.head": 13}),
        ("mobilenet_v3_small", 15, {"features.0.0": 0, "features.0.1": 0, "features.1.block.0.0": 1}),
        (
            "densenet121",
            60,
            {"features.denseblock1.denselayer2.conv1": 2, "features.transition1.conv": 6, "classifier": 59},
        ),
        ("googlenet", 11, {"conv3.conv": 0, "inception3a.branch2.0.conv": 1, "inception5b.branch1.conv": 9, "fc": 10}),
        ("swin_t", 17, {"features.1.0.attn.qkv": 1, "features.2.reduction": 3, "head": 16}),
    ],
)
def test_the_layers_of_known_families(name, layers, places):
    with torch.device("meta"):
        extra = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
        factors = layer_factors(get_model(name, weights=None, **extra), 0.5)
    exponents = {key.removesuffix(".weight"): f for key, f in factors.items()}
    assert len(set(factors.values())) == layers
    assert {place: exponents[place] for place in places} == {p: 0.5 ** (layers - 1 - k) for p, k in places.items()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Sgd(groups=[*GROUPS, ParameterGroup(match=["hd.*"], lr=1.0)]),
            r"optimizer\.groups\.3\.match: no name matches",
        ),
        (
            Muon(adamw=MuonRest(match=["head.*"])),
            r"optimizer\.adamw\.match: no name matches 'head\.\*'; there is blocks",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(config, net())


def test_what_is_frozen_is_in_no_group_and_cannot_be_matched():
    model = net()
    model.head.requires_grad_(False)
    assert "head.weight" not in rates(model, build_optimizer(Muon(layer_decay=0.5), model))
    with pytest.raises(UserError, match=r"optimizer\.groups\.0\.match"):
        build_optimizer(Sgd(groups=GROUPS), model)


def test_models_without_blocks_or_matrices_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(UserError, match="optimizer muon is for the matrices of hidden layers, and the model has none"):
        build_optimizer(Muon(), model)
    with pytest.raises(UserError, match="needs numbered blocks"):
        build_optimizer(Sgd(layer_decay=0.9), nn.Linear(2, 2))


# ---------------------------------------------------------------- Muon

MUON = Muon(lr=0.02, weight_decay=0.1, adamw=MuonRest(lr=0.003, weight_decay=0.2))


@pytest.mark.parametrize("tied", [False, True])
def test_muon_takes_the_hidden_matrices_and_its_steps_are_those_of_torch(tied):
    ours, theirs = net(tied), net(tied)
    optimizer = build_optimizer(MUON, ours)
    hidden = [theirs.blocks[0][1].weight, theirs.blocks[1][1].weight]
    others = [p for p in theirs.parameters() if all(p is not h for h in hidden)]
    decays = [p for p in others if p.ndim == 2]
    assert len(decays) == (1 if tied else 2)
    groups = [
        {"params": decays, "weight_decay": 0.2},
        {"params": [p for p in others if p.ndim == 1], "weight_decay": 0},
    ]
    muon = torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(groups, lr=0.003, betas=(0.9, 0.95), fused=True)
    both = type("Both", (), {"zero_grad": lambda self: None, "step": lambda self: (muon.step(), adamw.step())})()
    for number in range(4):
        step(ours, optimizer, number)
        muon.zero_grad(), adamw.zero_grad()
        step(theirs, both, number)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_muon_leaves_to_adamw_what_the_config_says():
    config = MUON.model_copy(update={"adamw": MuonRest(match=["blocks.1.*"])})
    model = net()
    found = rates(model, build_optimizer(config, model))
    assert [found[f"blocks.{n}.1.weight"][0] for n in (0, 1)] == [0.02, 3e-4]


@pytest.mark.parametrize(
    "config", [MUON, Muon(layer_decay=0.5, groups=GROUPS[:1]), AdamW(layer_decay=0.5, groups=GROUPS)]
)
def test_it_goes_on_where_it_stopped(config):
    model = net()
    optimizer = build_optimizer(config, model)
    state = OptimizerState(optimizer, model)
    for number in range(3):
        step(model, optimizer, number)
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    values, counters = state.values(), state.counters()
    other = copy.deepcopy(model)
    again = build_optimizer(config, other)
    OptimizerState(again, other).load(saved, values, counters)
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, again, number)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_a_gradient_scaler_sees_one_optimizer():
    model = net()
    optimizer = build_optimizer(MUON, model)
    before = copy.deepcopy(model.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for bad in (True, False):
        optimizer.zero_grad()
        scaler.scale(model(torch.tensor([[1, 2]])).sum()).backward()
        if bad:
            model.blocks[0][1].weight.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        unchanged = [torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()]
        assert all(unchanged) if bad else not any(unchanged[:2])
    assert scaler.get_scale() == 2.0
