"""A class for each pixel."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dist_train.errors import DataError
from dist_train.tasks.base import Loss, Model, Predictions, Sums, Task, Totals, counted, refused, tensor_of, unfit
from dist_train.tasks.per_sample import of_masks

if TYPE_CHECKING:
    from dist_train.data.batch import Microbatch


class Segmentation(Task):
    """Cross-entropy of each pixel's class scores; mean intersection over union (IoU).

    Args:
        classes: C, how many there are.
        ignore_index: pixels with this target count nowhere.
        loss: `cross_entropy`, or `focal` (Lin et al., 2017).
        focal_gamma: how much less the focal loss counts what is recognised already.
        aux_weight: of the loss of a second output `aux`, which torchvision's models have in training.
    """

    needs_targets = True
    whole_pictures = True

    def __init__(
        self,
        *,
        classes: int,
        ignore_index: int | None = 255,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        focal_gamma: float = 2.0,
        aux_weight: float = 0.5,
    ) -> None:
        self.classes, self._kind, self._gamma, self._aux_weight = classes, loss, focal_gamma, aux_weight
        self._ignored = -(2**62) if ignore_index is None else ignore_index

    def check_targets(self, target: Any, name_of: Callable[[int], str]) -> Tensor:
        """int64 [m, H, W] classes, of whatever whole numbers they were.

        Raises:
            UserError: for anything else, and for a class that there is none of.
        """
        if not isinstance(target, Tensor) or target.ndim != 3 or target.is_floating_point() or target.is_complex():
            takes = "segmentation takes the number of a class, a whole number, for each pixel: [height, width]"
            raise refused(target, name_of, takes)
        target = target.to(torch.int64)
        wrong = (((target < 0) | (target >= self.classes)) & (target != self._ignored)).nonzero()
        if len(wrong):
            row, line, column = wrong[0].tolist()
            raise DataError(
                f"{name_of(row)}: the target of the pixel in row {line}, column {column} is "
                f"{int(target[row, line, column])}, and there are the classes 0 to {self.classes - 1}"
            )
        return target

    def loss(self, output: Any, target: Tensor) -> Loss:
        """Summed in fp32 over the valid pixels.

        Args:
            output: [m, C, H, W] scores, or a mapping with such an `out` and perhaps an `aux`.
            target: int64 [m, H, W].
        """
        total, count = self._summed(self._scores(output, target), target)
        if isinstance(output, Mapping) and "aux" in output:
            total = total + self._aux_weight * self._summed(output["aux"], target)[0]
        return Loss(total, count)

    def statistics(self, output: Any, target: Tensor) -> Sums:
        """Sums for one batch: loss, count of valid pixels, confusion int64 [C, C] (row true, column predicted); and
        what is shown of each sample."""
        scores = self._scores(output, target).detach()
        losses, valid, guess = self._losses(scores, target), target != self._ignored, scores.argmax(1)
        cells = torch.where(valid, target * self.classes + guess, 0)
        confusion = torch.zeros(self.classes**2, dtype=torch.int64, device=target.device)
        confusion.scatter_add_(0, cells.flatten(), valid.flatten().long())
        return {
            "loss": losses.double().sum(),
            "count": valid.sum(),
            "confusion": confusion.view(self.classes, self.classes),
            "samples": of_masks(losses, valid, target, guess),
        }

    def predict(self, model: Model, batch: "Microbatch") -> Predictions:
        output = self.forward(model, batch.inputs)
        scores = output["out"] if isinstance(output, Mapping) and "out" in output else output
        return Predictions("places", tensor_of(scores, len(batch.indices)).argmax(1))

    def metrics(self, sums: Totals) -> dict[str, float]:
        """loss; mean_iou, over the classes that are there or were seen; pixel_accuracy."""
        count, confusion = counted(sums), sums["confusion"]
        iou = _iou(confusion.numpy())
        return {
            "loss": sums["loss"].item() / count,
            "mean_iou": float(iou[~np.isnan(iou)].mean()),
            "pixel_accuracy": confusion.diagonal().sum().item() / count,
        }

    def per_class(self, sums: Totals) -> dict[str, list[Any]]:
        """iou (None for a class that is neither there nor seen) and support (pixels)."""
        iou = [None if np.isnan(value) else float(value) for value in _iou(sums["confusion"].numpy())]
        return {"iou": iou, "support": sums["confusion"].sum(1).tolist()}

    def confusion(self, sums: Totals) -> np.ndarray | None:
        return sums["confusion"].numpy()

    def _scores(self, output: Any, target: Tensor) -> Tensor:
        scores = output["out"] if isinstance(output, Mapping) and "out" in output else output
        wanted = (len(target), self.classes, *target.shape[1:])
        if not isinstance(scores, Tensor) or scores.shape != wanted:
            raise unfit(f"segmentation takes scores of shape {list(wanted)}", scores)
        return scores

    def _summed(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self._losses(scores, target).sum(), (target != self._ignored).sum()

    def _losses(self, scores: Tensor, target: Tensor) -> Tensor:
        """float32 [m · H · W], 0 where a pixel is ignored. Over pixels in one row: torch's kernel for maps has no
        deterministic form on a GPU."""
        flat = scores.float().permute(0, 2, 3, 1).reshape(-1, self.classes)
        losses = F.cross_entropy(flat, target.flatten(), ignore_index=self._ignored, reduction="none")
        if self._kind == "focal":
            losses = losses * (1 - torch.exp(-losses)) ** self._gamma
        return losses


def _iou(confusion: np.ndarray) -> np.ndarray:
    """float64 [C]; nan for a class that is neither there nor seen."""
    both = np.diagonal(confusion).astype(np.float64)
    either = confusion.sum(0) + confusion.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)
