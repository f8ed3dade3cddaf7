"""Optimizers. Weights decay, norms and biases don't; further groups of parameters are the config's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from dist_train.config.imports import construct
from dist_train.config.schema import AdamW, Muon, MuonRest, OptimizerConfig, Sgd
from dist_train.errors import UserCodeError, UserError
from dist_train.optim.groups import check_rules, layer_factors, parameter_groups
from dist_train.optim.muon import FilterMuon, Together, hidden_matrices

Note = Callable[[str], None]


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, *, skips_steps: bool = False, note: Note = lambda line: None
) -> torch.optim.Optimizer:
    """The optimizer of the model's trainable parameters; for a fused kernel, build it once they are on their device.

    The user's own is called as `Thing(groups, lr=lr, **args)`, where groups are dicts with `params` and `weight_decay`,
    as torch.optim.Optimizer takes them; with `lr` and `lr_scale` too, where the config gives groups rates of their own.

    Args:
        skips_steps: whether a gradient scaler skips steps whose gradient overflows.
        note: is called with lines for the user: how many layers learn slower, and what Muon takes.

    Raises:
        UserError: when nothing can be trained, a pattern matches nothing, or the user's optimizer cannot be built so.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserCodeError("the model has no parameters to train")
    check_rules(model, config.groups)
    layers = None if config.layer_decay is None else layer_factors(model, config.layer_decay)
    if layers:
        lowest, count = min(layers, key=lambda name: layers[name]), len(set(layers.values()))
        note(f"optimizer.layer_decay: {count} layers; {lowest} learns at {layers[lowest]:.3g} of the rate")
    grouped = partial(parameter_groups, model, peak=config.lr, rules=config.groups, layers=layers)
    if isinstance(config, Muon):
        return _muon(config, model, grouped, note)
    groups = grouped(config.weight_decay, lr=config.lr)
    if isinstance(config, Sgd):
        sgd = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=_can_fuse(groups)
        )
        return _with_momentum(sgd) if skips_steps and config.momentum else sgd
    if isinstance(config, AdamW):
        return _adamw(config, groups)
    optimizer = construct(config, "optimizer", groups, offered={}, lr=config.lr)
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise UserCodeError(f"optimizer {config.name} gave a {kind}, no torch.optim.Optimizer")
    return optimizer


def _adamw(config: AdamW | MuonRest, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=_can_fuse(groups))


def _muon(config: Muon, model: nn.Module, grouped: Any, note: Note) -> torch.optim.Optimizer:
    """Raises UserError when the model has no matrices for it."""
    hidden = hidden_matrices(model, config.adamw.match, config.filters)
    if not hidden:
        raise UserError(
            "optimizer muon is for the matrices of hidden layers, and the model has none: take adamw or sgd"
        )
    matrices = grouped(config.weight_decay, lr=config.lr, takes=lambda name: name in hidden)
    others = grouped(config.adamw.weight_decay, lr=config.adamw.lr, takes=lambda name: name not in hidden)
    rest = sum(len(group["params"]) for group in others)
    note(f"optimizer muon: {len(hidden)} matrices of hidden layers; adamw has {rest} other parameters")
    muon = (FilterMuon if config.filters else torch.optim.Muon)(
        matrices, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, adjust_lr_fn=config.adjust_lr
    )
    return Together([muon, *([_adamw(config.adamw, others)] if others else [])])


def _with_momentum(sgd: torch.optim.SGD) -> torch.optim.SGD:
    """With a momentum of zero to begin with. A fused SGD whose first step is skipped would leave it uninitialised
    (torch/optim/sgd.py, _fused_sgd: torch.empty_like, which the kernel does not fill then)."""
    for group in sgd.param_groups:
        for parameter in group["params"]:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
