"""Exact evaluation: the evaluation set is cut into fixed batches by position, each is worked off once by one rank, and
what comes out are counts and float64 sums. Nothing is padded, dropped or repeated; the figures have the same bits for
any number of ranks, and for one rank alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dist_train.config.shares import share
from dist_train.data.batch import Microbatch
from dist_train.process_group import ProcessGroup
from dist_train.ranks import Ranks
from dist_train.tasks.base import Task

Batches = Callable[[Sequence[int]], Iterator[tuple[int, Microbatch]]]
"""From batch numbers to those batches."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one evaluation.

    Attributes:
        metrics: flat, by name.
        per_class: by class, where the task has classes.
        confusion: int64 [classes, classes], rows are the true ones; None where the task has none.
    """

    metrics: dict[str, float]
    per_class: dict[str, Any]
    confusion: np.ndarray | None


def own_batches(ranks: Ranks, count: int, mode: str) -> range:
    """The numbers of the batches that this rank works off: a contiguous share, or all of them on rank 0."""
    if mode == "rank0":
        return range(count if ranks.is_first else 0)
    busy = min(ranks.world_size, count)
    return share(ranks.rank, busy, count) if ranks.rank < busy else range(0)


def evaluate(
    model: nn.Module,
    task: Task,
    batches: Batches,
    count: int,
    group: ProcessGroup,
    *,
    mode: str = "sharded",
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Evaluation:
    """Evaluates `model` on `count` batches, on all ranks together; every rank gets the figures."""
    per_batch: dict[int, dict[str, Tensor]] = {}
    with _evaluating(model):
        for number, batch in batches(own_batches(group.ranks, count, mode)):
            with autocast():
                output = model(batch.inputs)
            per_batch[number] = task.statistics(output, batch.targets)
    sums = _reduce(per_batch, count, group)
    return Evaluation(metrics=task.metrics(sums), per_class=task.per_class(sums), confusion=task.confusion(sums))


def _reduce(per_batch: dict[int, dict[str, Tensor]], count: int, group: ProcessGroup) -> dict[str, Tensor]:
    """Adds the batches up in the order of their numbers, whoever worked them off."""
    layouts = [{name: (t.shape, t.dtype) for name, t in statistics.items()} for statistics in per_batch.values()][:1]
    layout = group.broadcast_object(layouts[0] if layouts else {})  # rank 0 always has a batch, unless there are none
    sums = {}
    for name, (shape, dtype) in layout.items():
        if dtype.is_floating_point:
            # Each batch's sum is filled in by one rank and zero on the others: adding the ranks changes no bit.
            table = torch.zeros(count, *shape, dtype=torch.float64)
            for number, statistics in per_batch.items():
                table[number] = statistics[name].to("cpu", torch.float64)
            sums[name] = group.sum_(table).sum(0)
        else:
            own = torch.zeros(shape, dtype=torch.int64)
            for statistics in per_batch.values():
                own += statistics[name].cpu()
            sums[name] = group.sum_(own)
    return sums


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
