"""A few samples to try a training with, and a check that the data set returns the same samples a second time."""

from typing import NamedTuple

import torch

from dist_train.checkpoint.model_state import same
from dist_train.config.schema import RunConfig
from dist_train.data.batch import Microbatch
from dist_train.data.datasets import Splits
from dist_train.data.loader import evaluation_samples, training_samples
from dist_train.errors import UserError
from dist_train.tasks.base import Task

_MOST = 8
"""Evaluation samples: soon done."""


class Samples(NamedTuple):
    """Two training microbatches, and a few evaluation samples."""

    first: Microbatch
    other: Microbatch
    evaluated: Microbatch


def draw_samples(config: RunConfig, splits: Splits, task: Task, device: torch.device) -> Samples:
    """Raises UserError when the data set gives other samples when it is asked again."""
    first, other, again = training_samples(config, splits, task, device, steps=(0, 1, 0))
    evaluated, once_more = evaluation_samples(config, splits, task, device, _MOST, times=2)
    if config.exact:
        _check_again(config.data.name, first, again)
        _check_again(config.data.name, evaluated, once_more)
    return Samples(first, other, evaluated)


def _check_again(name: str, one: Microbatch, two: Microbatch) -> None:
    for part in ("inputs", "targets"):
        if not same(getattr(one, part), getattr(two, part)):
            named = ", ".join(map(str, one.indices[:_MOST].tolist()))
            raise UserError(
                f"data {name}: the {part} of samples {named} are others when they are asked for again, so they depend "
                "on more than their index: draw from the global generators of Python, NumPy or torch, which are set "
                "for each sample, and keep no state"
            )
