"""Any number of several classes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dist_train.errors import DataError
from dist_train.tasks.base import Loss, Model, Predictions, Rows, Sums, Task, Totals, counted, refused, tensor_of, unfit
from dist_train.tasks.classification import ratios
from dist_train.tasks.per_sample import PerSample

if TYPE_CHECKING:
    from dist_train.data.batch import Microbatch


class MultiLabel(Task):
    """A binary decision for each class, with metrics as scikit-learn defines them.

    Args:
        classes: C, how many there are.
        loss: `bce`, binary cross-entropy, or `focal` (Lin et al., Focal Loss for Dense Object Detection, 2017), each
            the mean over the classes.
        focal_gamma: how much less the focal loss counts what is recognised already.
    """

    counts_every_sample = needs_targets = True

    def __init__(self, *, classes: int, loss: Literal["bce", "focal"] = "bce", focal_gamma: float = 2.0) -> None:
        self.classes, self._kind, self._gamma = classes, loss, focal_gamma

    def check_targets(self, target: Any, name_of: Callable[[int], str]) -> Tensor:
        """float32 [m, C] of zeros and ones, of whatever type they were.

        Raises:
            UserError: for anything else.
        """
        fits = isinstance(target, Tensor) and target.ndim == 2 and target.shape[1] == self.classes
        if not fits or target.is_complex():
            takes = f"multi_label takes a 0 or 1 for each of the {self.classes} classes: [{self.classes}]"
            raise refused(target, name_of, takes)
        wrong = ((target != 0) & (target != 1)).nonzero()
        if len(wrong):
            row, place = wrong[0].tolist()
            raise DataError(
                f"{name_of(row)}: the target of class {place} is {target[row, place].item()}, and must be 0 or 1"
            )
        return target.float()

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """Summed in fp32.

        Args:
            output: [m, C] scores before the sigmoid, of any floating dtype.
            target: float32 [m, C].
        """
        return Loss(self._losses(output, target).sum(), len(target))

    def statistics(self, output: Tensor, target: Tensor) -> Sums:
        """Sums for one batch: loss and count; right, predicted and support, int64 [C], of the decisions at a
        probability of 0.5; the scores and targets of each sample, for the ranking; and what is shown of it."""
        scores = output.detach().float()
        true, guess = target > 0.5, scores > 0
        losses = self._losses(scores, target)
        return {
            "loss": losses.double().sum(),
            "count": torch.tensor(len(target)),
            "right": (true & guess).sum(0),
            "predicted": guess.sum(0),
            "support": true.sum(0),
            "scores": Rows(scores),
            "targets": Rows(true),
            "samples": PerSample(loss=losses, truth=true, prediction=guess),
        }

    def predict(self, model: Model, batch: "Microbatch") -> Predictions:
        return Predictions("labels", tensor_of(self.forward(model, batch.inputs), len(batch.indices)).sigmoid())

    def metrics(self, sums: Totals) -> dict[str, float]:
        """loss; mean_average_precision, over the classes that have a sample; precision, recall and f1, each the mean
        over all C classes, where a ratio of nothing to nothing is 0; f1_micro, over all decisions at once."""
        count = counted(sums)
        by_class = ratios(sums)
        right, decided = sums["right"].sum().item(), (sums["predicted"].sum() + sums["support"].sum()).item()
        precisions = self._average_precisions(sums)
        precisions = precisions[~np.isnan(precisions)]
        return {
            "loss": sums["loss"].item() / count,
            "mean_average_precision": float(precisions.mean()) if len(precisions) else 0.0,
            **{name: float(values.mean()) for name, values in by_class.items()},
            "f1_micro": 2 * right / max(decided, 1),
        }

    def per_class(self, sums: Totals) -> dict[str, list[Any]]:
        """average_precision (None for a class without a sample), precision, recall, f1 and support."""
        precisions = [None if np.isnan(value) else float(value) for value in self._average_precisions(sums)]
        found = {name: values.tolist() for name, values in ratios(sums).items()}
        return {"average_precision": precisions, **found, "support": sums["support"].tolist()}

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        """float32 [m]."""
        if not isinstance(output, Tensor) or output.shape != target.shape:
            raise unfit(f"multi_label takes scores of shape [samples, {self.classes}]", output)
        losses = F.binary_cross_entropy_with_logits(output.float(), target, reduction="none")
        if self._kind == "focal":
            losses = losses * (1 - torch.exp(-losses)) ** self._gamma  # exp(-loss) is the probability of what is true
        return losses.mean(1)

    def _average_precisions(self, sums: Totals) -> np.ndarray:
        """float64 [C]; nan for a class without a sample."""
        scores, targets = sums["scores"].numpy(), sums["targets"].numpy()
        return np.array([average_precision(targets[:, place], scores[:, place]) for place in range(self.classes)])


def average_precision(true: np.ndarray, scores: np.ndarray) -> float:
    """The mean of the precisions at each threshold, weighted by the recall that is gained there, as scikit-learn has
    it: equal scores are one threshold. nan without a true sample."""
    if not true.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(true[order], dtype=np.float64)[ends]
    precision, recall = found / (1 + ends), found / found[-1]
    return float(np.sum(np.diff(np.insert(recall, 0, 0.0)) * precision))
