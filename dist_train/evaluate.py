"""Exact evaluation. The evaluation set is cut into fixed batches by position. One rank evaluates each batch, once, and
gets counts and float64 sums. Nothing is padded, dropped or repeated. The metrics have the same bits for any number of
ranks, and for one rank alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dist_train.config.schema import RunConfig
from dist_train.config.shares import share
from dist_train.data.broken import Broken, most_broken
from dist_train.data.loader import evaluation_batches, number_of_batches
from dist_train.errors import DataError, UserCodeError, UserError
from dist_train.heartbeat import beat
from dist_train.learner import autocast
from dist_train.parallel.buffers import BufferSet
from dist_train.parallel.overlap import Leash
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.randomness import Generators, key
from dist_train.sums import BatchSums
from dist_train.tasks.base import Model, Task
from dist_train.worst import WorstSample, WorstSamples


class EvaluationGivenUp(Exception):
    """Some rank was asked to stop. What had been evaluated counts for nothing."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of one evaluation.

    Attributes:
        metrics: flat, by name.
        per_class: by class, where the task has classes.
        confusion: int64 [classes, classes], rows are the true ones; None where the task has none.
        broken: the samples that could not be read and were left out, in their order.
        worst: the samples of the highest losses, the highest first; where the task says what there is to show.
        pairs: truth and prediction of some samples, [samples, numbers, 2]; None where those are not numbers.
    """

    metrics: dict[str, float]
    per_class: dict[str, Any]
    confusion: np.ndarray | None
    broken: tuple[Broken, ...] = ()
    worst: tuple[WorstSample, ...] = ()
    pairs: np.ndarray | None = None


def own_batches(ranks: Ranks, count: int, mode: str) -> range:
    """The numbers of the batches that this rank evaluates: a contiguous share, or all of them on rank 0."""
    if mode == "rank0":
        return range(count if ranks.is_first else 0)
    busy = min(ranks.world_size, count)
    return share(ranks.rank, busy, count) if ranks.rank < busy else range(0)


def evaluate(
    config: RunConfig,
    model: nn.Module,
    task: Task,
    group: ProcessGroup,
    dataset: Any,
    gives_up: Callable[[], bool] = lambda: False,
    tell: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Evaluates `model` on one split, on all ranks together; every rank gets the metrics.

    Args:
        gives_up: asked before each batch whether this rank gives the evaluation up.
        tell: told before each batch which part of its batches this rank has done, from 0 to 1.

    Raises:
        EvaluationGivenUp: on every rank, when one has given up.
        UserError: on every rank, (exit 13) when too many samples are broken.
    """
    count = number_of_batches(len(dataset), config.eval.batch_size)
    count = min(count, config.eval.most_batches or count)
    sums, own = BatchSums(count), own_batches(group.ranks, count, config.eval.mode)
    batches = evaluation_batches(config, dataset, own, group.device, group.ranks.local_world_size, task)
    leash, done, worst = Leash(group.device), 0, WorstSamples(config.tracking.worst_samples)
    broken: list[Broken] = []
    beat("evaluate")
    with evaluating(model, config.seed, Generators(model, task)) as begin:
        for number, batch in batches:
            if gives_up():
                break
            tell(done / len(own))
            begin(number)
            if len(batch.indices):
                with autocast(config, group.device):
                    found = task.evaluate(both_ways(model) if config.eval.flips else model, batch)
                sums.add(number, found)
                worst.add(batch.indices, found)
            broken += batch.broken
            done += 1
            leash.step()
            beat("evaluate")
    told = torch.tensor([done < len(own) and gives_up(), len(broken), bool(worst.kept)])
    gave_up, count, shows = group.all_reduce_host_(told.long()).tolist()
    if gave_up:
        raise EvaluationGivenUp
    if done < len(own):
        raise UserCodeError(f"the evaluation data ended after {done} of {len(own)} batches")
    everywhere = tuple(chain.from_iterable(group.gather_objects(broken))) if count else ()
    _check_broken(config, everywhere, len(dataset))
    total = sums.over_all_ranks(group)
    return Evaluation(
        metrics=task.metrics(total),
        per_class=task.per_class(total),
        confusion=task.confusion(total),
        broken=everywhere,
        worst=worst.over_all_ranks(group) if shows else (),
        pairs=task.pairs(total) if config.tracking.worst_samples else None,
    )


def _check_broken(config: RunConfig, broken: Sequence[Broken], size: int) -> None:
    share = config.data.max_broken
    if len(broken) > (most := most_broken(share, size)):
        raise DataError(
            f"{len(broken)} of the {size:,} samples to evaluate cannot be read, and data.max_broken={share:g} allows "
            f"{most}: mend the data, or raise data.max_broken. The first: {broken[0].reason}"
        )


def both_ways(model: Model) -> Model:
    """`eval.flips`: the mean of what `model` says of images [m, C, H, W] as they are and mirrored from left to right.

    Raises:
        UserError: when the inputs are no such images, or the model returns no tensor.
    """

    def mean(images: Any) -> Tensor:
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise UserError("eval.flips mirrors images [channels, height, width], and the data has other inputs")
        plain, mirrored = model(images), model(images.flip(-1))
        if not isinstance(plain, Tensor):
            raise UserError(f"eval.flips takes a tensor from the model, which gave {type(plain).__name__}")
        return (plain + mirrored) / 2

    return mean


@contextmanager
def evaluating(model: nn.Module, seed: int, generators: Generators) -> Iterator[Callable[[int], None]]:
    """Puts a model into evaluation mode, without gradients. The block gets a function, to be called with a batch's
    number before each batch: the batch then begins with the same buffers as all others, and with draws of its own.
    Afterwards all buffers and modes are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = BufferSet(model)
    values = buffers.values()

    def begin(number: int) -> None:
        buffers.restore(values)
        generators.seed(key(seed, "evaluation", number))

    model.eval()
    try:
        with torch.no_grad():
            yield begin
    finally:
        buffers.restore(values)
        model.train(modes[0][1])  # a model's own train() may do more
        for module, mode in modes:  # one by one: parts may be in evaluation mode for good
            module.training = mode
