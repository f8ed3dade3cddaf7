"""Gradients that are clipped: the same bits wherever in memory they lie."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dist_train.parallel.bucket import realigned

if TYPE_CHECKING:
    from dist_train.config.schema import TrainConfig


def clip(parameters: Sequence[Tensor], train: "TrainConfig") -> Tensor:
    """As the section has it; returns what `clip_to` does."""
    return clip_to(parameters, train.clip_norm)


def clip_to(parameters: Sequence[Tensor], max_norm: float | None) -> Tensor:
    """Scales the gradients down to an L2 norm of at most `max_norm`, if there is one.

    Returns:
        the norm before, 0-dim.
    """
    norm = get_total_norm([realigned(parameter.grad) for parameter in parameters if parameter.grad is not None])
    if max_norm is not None:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
