"""Optimizers, with two groups of parameters: weights, which decay, and norms and biases, which don't."""

from typing import Any

import torch
from torch import nn

from dist_train.config.imports import construct
from dist_train.config.schema import AdamW, OptimizerConfig, Sgd
from dist_train.errors import ExitCode, UserError

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def build_optimizer(config: OptimizerConfig, model: nn.Module, *, skips_steps: bool = False) -> torch.optim.Optimizer:
    """The optimizer of the model's trainable parameters; for a fused kernel, build it once they are on their device.

    The user's own is called as `Thing(groups, lr=lr, **args)`, where groups are dicts with `params` and `weight_decay`,
    as torch.optim.Optimizer takes them.

    Args:
        skips_steps: whether a gradient scaler skips steps whose gradient overflows.

    Raises:
        UserError: when nothing can be trained, or the user's optimizer cannot be built so.
    """
    groups = parameter_groups(model, config.weight_decay)
    if not groups:
        raise UserError("the model has no parameters to train", ExitCode.USER_CODE)
    if isinstance(config, Sgd):
        sgd = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=_can_fuse(groups)
        )
        return _with_momentum(sgd) if skips_steps and config.momentum else sgd
    if isinstance(config, AdamW):
        betas = (config.betas[0], config.betas[1])
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=_can_fuse(groups))
    optimizer = construct(config, "optimizer", groups, offered={}, lr=config.lr)
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise UserError(f"optimizer {config.name} gave a {kind}, no torch.optim.Optimizer", ExitCode.USER_CODE)
    return optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """One or two groups, each in the model's order, none empty: what decays, then what doesn't."""
    still = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim <= 1 or name == "bias" or isinstance(module, _NORMS)
    }
    decay: dict[str, Any] = {"params": [], "weight_decay": weight_decay}
    no_decay: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for parameter in model.parameters():
        if parameter.requires_grad:
            (no_decay if id(parameter) in still else decay)["params"].append(parameter)
    return [group for group in (decay, no_decay) if group["params"]]


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
