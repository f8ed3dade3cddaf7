"""Numbers."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dist_train.errors import DataError, UserCodeError
from dist_train.tasks.base import Loss, Model, Predictions, Rows, Sums, Task, Totals, counted, refused, tensor_of
from dist_train.tasks.per_sample import of_numbers

if TYPE_CHECKING:
    from dist_train.data.batch import Microbatch

_MOST_PAIRS, _MOST_CHARTS = 1_000, 4
"""Truths and predictions that are drawn, and of how many of a sample's numbers."""
_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss}
_LOSSES |= {"huber": F.huber_loss, "smooth_l1": F.smooth_l1_loss}
_LARGEST = 1_024
"""Numbers a sample up to which R² is computed: targets and outputs of all samples are held in memory for it."""


class Regression(Task):
    """One number or several for each sample, with metrics as scikit-learn defines them.

    Args:
        loss: `mse`, `mae`, `huber` (Huber, Robust Estimation of a Location Parameter, 1964) or `smooth_l1`, each the
            mean over a sample's numbers.
        delta: of huber and smooth_l1, the error from which they are linear.
    """

    counts_every_sample = needs_targets = True

    def __init__(self, *, loss: Literal["mse", "mae", "huber", "smooth_l1"] = "mse", delta: float = 1.0) -> None:
        self._kind, self._delta = loss, delta

    def check_targets(self, target: Any, name_of: Callable[[int], str]) -> Tensor:
        """float32, of whatever real numbers they were.

        Raises:
            UserError: for anything else, and for a number that is not finite.
        """
        if not isinstance(target, Tensor) or target.is_complex():
            raise refused(target, name_of, "regression takes a number, or several in one shape for all samples")
        wrong = (~torch.isfinite(target)).nonzero()
        if len(wrong):
            row = int(wrong[0, 0])
            raise DataError(
                f"{name_of(row)}: the target is {target[tuple(wrong[0].tolist())].item()}, which is not finite"
            )
        return target.float()

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """Summed in fp32.

        Args:
            output: of the targets' shape, or [m, 1] for targets [m].
            target: float32 [m, …].
        """
        return Loss(self._losses(self._fitted(output, target), target).sum(), len(target))

    def statistics(self, output: Tensor, target: Tensor) -> Sums:
        """Sums for one batch: loss, count, numbers, absolute and squared errors, float64; of each sample output and
        target, where that is at most 1,024 numbers; and what is shown of it."""
        output = self._fitted(output.detach(), target)
        error = output.double() - target.double()
        losses = self._losses(output, target)
        sums: dict[str, Any] = {
            "loss": losses.double().sum(),
            "count": torch.tensor(len(target)),
            "numbers": torch.tensor(target.numel()),
            "absolute": error.abs().sum(),
            "squared": error.square().sum(),
            "samples": of_numbers(losses, target, output),
        }
        if target[0].numel() <= _LARGEST:
            sums |= {"outputs": Rows(output.reshape(len(output), -1)), "targets": Rows(target.reshape(len(target), -1))}
        return sums

    def predict(self, model: Model, batch: "Microbatch") -> Predictions:
        return Predictions("numbers", tensor_of(self.forward(model, batch.inputs), len(batch.indices)))

    def metrics(self, sums: Totals) -> dict[str, float]:
        """loss; mae; rmse; r2, unless a sample has more than 1,024 numbers. Where a sample has several, rmse and r2 are
        the means over them, except that rmse is over all at once where there is no r2."""
        count = counted(sums)
        found = {"loss": sums["loss"].item() / count, "mae": sums["absolute"].item() / sums["numbers"].item()}
        if "targets" not in sums:
            return {**found, "rmse": math.sqrt(sums["squared"].item() / sums["numbers"].item())}
        by_output = _by_output(sums)
        return {**found, "rmse": float(by_output["rmse"].mean()), "r2": float(by_output["r2"].mean())}

    def per_class(self, sums: Totals) -> dict[str, list[Any]]:
        """mae, rmse and r2 of each number, where a sample has several."""
        if "targets" not in sums or sums["targets"].shape[1] == 1:
            return {}
        return {name: values.tolist() for name, values in _by_output(sums).items()}

    def pairs(self, sums: Totals) -> np.ndarray | None:
        """Of at most 1,000 samples, and of the first four numbers of each."""
        if "targets" not in sums:
            return None
        both = np.stack([sums["targets"].numpy(), sums["outputs"].numpy()], axis=-1)[:, :_MOST_CHARTS]
        count = min(len(both), _MOST_PAIRS // both.shape[1])
        return both[np.arange(count) * len(both) // count]

    def _fitted(self, output: Any, target: Tensor) -> Tensor:
        if isinstance(output, Tensor):
            if output.shape == (*target.shape, 1):
                output = output.squeeze(-1)
            if output.shape == target.shape:
                return output.float()
        given = list(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        raise UserCodeError(
            f"regression takes from the model, for each sample, the shape of its target, {list(target.shape[1:])}; the "
            f"model gave {given}"
        )

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        """float32 [m]."""
        of_a_number = _LOSSES[self._kind]
        options = {"huber": {"delta": self._delta}, "smooth_l1": {"beta": self._delta}}.get(self._kind, {})
        losses = of_a_number(output, target, reduction="none", **options)
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def _by_output(sums: Totals) -> dict[str, np.ndarray]:
    """mae, rmse and r2, float64 [numbers]. r2 of a target that never changes is 1 where it is met, else 0."""
    true, guess = sums["targets"].numpy().astype(np.float64), sums["outputs"].numpy().astype(np.float64)
    error = guess - true
    left, all_ = (error**2).sum(0), ((true - true.mean(0)) ** 2).sum(0)
    r2 = np.where(all_ > 0, 1 - left / np.where(all_ > 0, all_, 1), np.where(left > 0, 0.0, 1.0))
    return {"mae": np.abs(error).mean(0), "rmse": np.sqrt((error**2).mean(0)), "r2": r2}
