"""Modules that have no deterministic backward on a GPU, by their kind. The error comes when the model is built; torch's
comes in the middle of the first backward, and names an operation instead of the module.

The list is what `torch.use_deterministic_algorithms` documents, without what torch 2.14 replaces deterministically.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from dist_train.config.schema import RunConfig
from dist_train.config.shares import check_even
from dist_train.errors import UserError

_SHOWN = 3


def _is_no_mean(module: Any) -> bool:
    """An adaptive mean over everything is an ordinary mean, and torch computes it so, but for one dimension."""
    sizes = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,)
    return any(size != 1 for size in sizes)


def _always(module: Any) -> bool:
    return True


_ON_A_GPU: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any], bool]], ...] = (
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _is_no_mean),
    ((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.AvgPool3d), _always),
    ((nn.FractionalMaxPool2d, nn.FractionalMaxPool3d), _always),
    ((nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d), _always),
    ((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), _always),
    ((nn.modules.conv._ConvNd,), lambda module: module.padding_mode == "reflect"),
    ((nn.Upsample,), lambda module: module.mode in ("linear", "bicubic")),
    ((nn.EmbeddingBag,), lambda module: module.mode == "max"),
)


def without_deterministic_form(model: nn.Module) -> Iterator[str]:
    """Names and kinds of the modules: `avgpool (AdaptiveAvgPool2d)`."""
    for name, module in model.named_modules():
        if any(isinstance(module, kinds) and holds(module) for kinds, holds in _ON_A_GPU):
            yield f"{name or 'the model'} ({type(module).__name__})"


def explain_nondeterministic(found: list[str]) -> str:
    """For the user."""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        f"exact: true, and on a GPU torch has no deterministic backward for {', '.join(found[:_SHOWN])}{more} of the "
        "model: set exact: false, or use another module"
    )


def check_deterministic(config: RunConfig, model: nn.Module, device: torch.device, world_size: int) -> None:
    """Checks that the model can be trained so on that device.

    Raises:
        UserError: when it is to be exact and has no deterministic form, or when its SyncBatchNorm would wait for ranks
            that have fewer microbatches.
    """
    if device.type == "cuda" and config.exact and (found := [*without_deterministic_form(model)]):
        raise UserError(explain_nondeterministic(found))
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        check_even(world_size, config.batch.settled)
