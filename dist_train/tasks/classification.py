"""One class of several."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dist_train.errors import DataError
from dist_train.tasks.base import Model, Predictions, Sums, Task, Totals, counted, refused, unfit
from dist_train.tasks.per_sample import PerSample

if TYPE_CHECKING:
    from dist_train.data.batch import Microbatch

_NO_CLASS = -(2**62)
"""Given to cross_entropy where no target is to be ignored, so that its own default, -100, fails as out of range."""
_LARGEST_CONFUSION = 2_000
"""Classes up to which the confusion matrix is kept; above, it would be the larger part of an evaluation's memory."""


class Classification(Task):
    """One class for each sample, with metrics as scikit-learn defines them.

    Args:
        classes: C, how many there are.
        label_smoothing: share of the target spread evenly over all classes, in the training loss alone (Szegedy et
            al., Rethinking the Inception Architecture, 2015, section 7).
        ignore_index: samples with this target count nowhere, neither in the loss nor in the metrics. Without it every
            sample counts, and a target outside 0 to C - 1 is an error.
        loss: `cross_entropy`; `bce`, a binary decision for each class, the mean over them (Wightman et al., ResNet
            strikes back, 2021); or `focal` (Lin et al., Focal Loss for Dense Object Detection, 2017).
        focal_gamma: how much less the focal loss counts what is recognised already.
    """

    needs_targets = True

    def __init__(
        self,
        *,
        classes: int,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        loss: Literal["cross_entropy", "bce", "focal"] = "cross_entropy",
        focal_gamma: float = 2.0,
    ) -> None:
        self.classes, self._kind, self._gamma = classes, loss, focal_gamma
        self.counts_every_sample = ignore_index is None
        self._label_smoothing = label_smoothing
        self._ignored = _NO_CLASS if ignore_index is None else ignore_index

    def check_targets(self, target: Any, name_of: Callable[[int], str]) -> Tensor:
        """int64 [m] classes, of whatever whole numbers they were, or float [m, C] shares of the classes as they are.

        Raises:
            UserError: for anything else, and for a class that there is none of.
        """
        takes = "classification takes the number of one class, a whole number, for each sample"
        if not isinstance(target, Tensor):
            raise refused(target, name_of, takes)
        if target.ndim == 2 and target.shape[1] == self.classes and target.is_floating_point():
            wrong = ~((target >= 0) & target.isfinite()).all(1)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                shares = ", ".join(f"{share:g}" for share in target[row, :8].tolist()) + ", …" * (self.classes > 8)
                raise DataError(f"{name_of(row)}: the target is [{shares}], and shares of the classes are 0 or more")
            return target
        if target.ndim != 1 or target.is_floating_point() or target.is_complex():
            raise refused(target, name_of, takes)
        target = target.to(torch.int64)
        lowest, highest = target.aminmax()
        if lowest < 0 or highest >= self.classes:
            wrong = ((target < 0) | (target >= self.classes)) & (target != self._ignored)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise DataError(
                    f"{name_of(row)}: the target is {int(target[row])}, and there are the classes 0 to "
                    f"{self.classes - 1}"
                )
        return target

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """Summed in fp32.

        Args:
            output: [m, C] scores before softmax, of any floating dtype.
            target: int64 [m] classes, or float [m, C] shares of the classes as mixup and cutmix make them.
        """
        self._check(output)
        if self._kind == "cross_entropy":
            loss = self._cross_entropy(output, target, "sum", self._label_smoothing)
        else:
            loss = self._losses(output, target, self._label_smoothing).sum()
        if self.counts_every_sample or target.is_floating_point():
            return loss, len(target)
        return loss, (target != self._ignored).sum()

    def statistics(self, output: Tensor, target: Tensor) -> Sums:
        """Sums for one batch; nothing here waits for a GPU.

        Args:
            output: [m, C] scores, of any floating dtype; a NaN never counts as right in top5.
            target: int64 [m].

        Returns:
            loss: float64 [], without label smoothing; each sample's in fp32, added in fp64.
            count, top5: int64 [].
            right, predicted, support: int64 [C], samples of the class that were recognised, samples taken for it,
                samples of it.
            confusion: int64 [C, C], row true, column predicted; not there above 2,000 classes.
            samples: of each its loss, class, guess and the guess's probability.
        """
        self._check(output)
        if target.ndim != 1:
            raise DataError(
                f"classification is evaluated on one class for each sample, and the targets have the shape "
                f"{list(target.shape)}: shares of the classes are for training alone"
            )
        scores = output.detach().float()
        valid = target != self._ignored
        true = torch.where(valid, target, 0)
        guess = scores.argmax(dim=1)
        losses = self._losses(scores, target, 0.0)
        sums: dict[str, Any] = {
            "loss": losses.double().sum(),
            "count": valid.sum(),
            "top5": (valid & (_rank(scores, true) < 5)).sum(),
            "right": _histogram(true, valid & (guess == true), self.classes),
            "predicted": _histogram(guess, valid, self.classes),
            "support": _histogram(true, valid, self.classes),
            "samples": PerSample(
                loss=torch.where(valid, losses, -torch.inf),
                truth=true,
                prediction=guess,
                probability=self._probabilities(scores).gather(1, guess[:, None])[:, 0],
            ),
        }
        if self.classes <= _LARGEST_CONFUSION:
            cells = _histogram(true * self.classes + guess, valid, self.classes**2)
            sums["confusion"] = cells.view(self.classes, self.classes)
        return sums

    def predict(self, model: Model, batch: "Microbatch") -> Predictions:
        output = self.forward(model, batch.inputs)
        self._check(output)
        return Predictions("probabilities", self._probabilities(output.float()))

    def metrics(self, sums: Totals) -> dict[str, float]:
        """loss, accuracy, top5; precision, recall and f1, each the mean over all C classes (macro), where a ratio of
        nothing to nothing is 0; and the same over all samples at once (micro).
        """
        count = counted(sums)
        accuracy = sums["right"].sum().item() / count
        by_class = ratios(sums)
        return {
            "loss": sums["loss"].item() / count,
            "accuracy": accuracy,
            "top5": sums["top5"].item() / count,
            **{name: float(values.mean()) for name, values in by_class.items()},
            # With one true and one predicted class a sample, each miss is one false positive and one false negative.
            **{f"{name}_micro": accuracy for name in by_class},
        }

    def per_class(self, sums: Totals) -> dict[str, list[Any]]:
        """precision, recall, f1 and support (samples of the class) of classes 0 to C - 1."""
        found = {name: values.tolist() for name, values in ratios(sums).items()}
        return {**found, "support": sums["support"].tolist()}

    def confusion(self, sums: Totals) -> np.ndarray | None:
        return sums["confusion"].numpy() if "confusion" in sums else None

    def _losses(self, output: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
        """float32 [m]; 0 for a sample that is ignored."""
        if self._kind == "cross_entropy":
            return self._cross_entropy(output, target, "none", label_smoothing)
        output, valid, shares = output.float(), torch.ones(len(target), device=target.device), target
        if not target.is_floating_point():
            valid = (target != self._ignored).float()
            shares = F.one_hot(torch.where(valid > 0, target, 0), self.classes).float()
        shares = shares * (1 - label_smoothing) + label_smoothing / self.classes
        if self._kind == "bce":
            return F.binary_cross_entropy_with_logits(output, shares, reduction="none").mean(1) * valid
        log = output.log_softmax(1)
        return -(shares * (1 - log.exp()) ** self._gamma * log).sum(1) * valid

    def _probabilities(self, scores: Tensor) -> Tensor:
        return scores.sigmoid() if self._kind == "bce" else scores.softmax(1)

    def _cross_entropy(self, output: Tensor, target: Tensor, reduction: str, label_smoothing: float) -> Tensor:
        return F.cross_entropy(
            output.float(), target, ignore_index=self._ignored, reduction=reduction, label_smoothing=label_smoothing
        )

    def _check(self, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] != self.classes:
            raise unfit(f"classification takes scores of shape [samples, {self.classes}]", output)


def _rank(scores: Tensor, true: Tensor) -> Tensor:
    """int64 [m]: how many classes come before the true one, by score and then by number, as in argmax.

    Without sorting, and without torch.topk, whose order of equal scores is left open.
    """
    own = scores.gather(1, true[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < true[:, None]
    return (~(scores <= own) | ((scores == own) & before)).sum(dim=1)


def _histogram(values: Tensor, counts: Tensor, size: int) -> Tensor:
    """int64 [size]: how often each value is there where counts is true. bincount would wait for the GPU."""
    return torch.zeros(size, dtype=torch.int64, device=values.device).scatter_add_(0, values, counts.long())


def ratios(sums: Totals) -> dict[str, np.ndarray]:
    """precision, recall and f1 of each class, float64 [C]; 0 where there is nothing to divide by."""
    right, predicted, support = (sums[name].numpy() for name in ("right", "predicted", "support"))
    parts = {"precision": (right, predicted), "recall": (right, support), "f1": (2 * right, predicted + support)}
    return {name: np.where(all_ > 0, some / np.maximum(all_, 1), 0.0) for name, (some, all_) in parts.items()}
