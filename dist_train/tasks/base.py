"""What is learned: from a model's output and the targets to a loss, and to the metrics of an evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.errors import ExitCode, UserError

Sums = dict[str, Tensor]
"""Named sums over samples, of fixed shapes: int64 for what is counted, float64 for what is measured. Those of two
batches are added name by name, so that a metric is exact however the batches are distributed."""


class Task(ABC):
    """Derive from it, and write `loss`; the rest has an answer already, which evaluates the loss alone.

    Attributes:
        counts_every_sample: `loss` always counts as many targets as there are samples. The loss can then be normalised
            over the global batch without asking the other ranks; False is always right, and costs one small sum a step.
    """

    counts_every_sample: bool = False

    @abstractmethod
    def loss(self, output: Any, target: Any) -> tuple[Tensor, Tensor | int]:
        """The training loss of one microbatch.

        Args:
            output: what the model gave for its inputs.
            target: what the dataset gave, stacked.

        Returns:
            The sum over the valid targets, a scalar to differentiate, and how many those are. The system divides the
            sums of all ranks by the counts of all ranks.
        """

    def check_targets(self, target: Any, name_of: Callable[[int], str]) -> Any:
        """A batch's targets as `loss` and `statistics` take them; called for every batch, before anything is computed.

        Without one of your own, all are taken as they are.

        Args:
            target: what the dataset gave, stacked, on the CPU still.
            name_of: from a row of the batch to the sample's name, for a message: "sample 3".

        Raises:
            UserError: when there is one that the task can't learn from.
        """
        return target

    def statistics(self, output: Any, target: Any) -> Sums:
        """Sums over one evaluation batch, on the device of the output, from which `metrics` can be had."""
        loss, count = self.loss(output, target)
        return {"loss": loss.detach().double(), "count": torch.as_tensor(count, device=loss.device).long()}

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The metrics by name, from the sums over the whole split, on the CPU.

        Raises:
            UserError: when there was nothing to evaluate.
        """
        count = counted(sums)
        return {"loss": sums["loss"].item() / count}

    def per_class(self, sums: Sums) -> dict[str, list[Any]]:
        """Metrics of every class by name, each a list in the order of the classes; empty where there are no classes."""
        return {}

    def confusion(self, sums: Sums) -> np.ndarray | None:
        """int64 [classes, classes], rows the true class, columns the predicted; None where there is none."""
        return None


def counted(sums: Sums) -> int:
    """How many targets were evaluated, `count`.

    Raises:
        UserError: when there were none, so that there is no mean.
    """
    count = int(sums.get("count", 0))  # no batches, no sums
    if count == 0:
        raise UserError("the evaluation split has no valid targets, so there is nothing to evaluate", ExitCode.DATA)
    return count
