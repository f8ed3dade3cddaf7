"""What `dist-train replay --show` shows of a step: its microbatches' losses and samples, and its largest gradients."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.checkpoint.state import TrainState
from dist_train.step_metrics import Report, StepMetrics, StepResult
from dist_train.trainer import Trainer

LARGEST = 5


@dataclass(frozen=True, kw_only=True)
class StepDetail:
    """One step, taken apart.

    Attributes:
        gradient_norm: L2 norm of the whole gradient before clipping.
        microbatches: {"number", "loss", "indices"} of each: its mean loss, and its samples' places in the training set.
        largest_gradients: name and L2 norm of the parameters with the largest reduced gradients, before clipping.
    """

    step: int
    lr: float
    gradient_norm: float
    microbatches: list[dict[str, Any]]
    largest_gradients: dict[str, float]

    def __str__(self) -> str:
        lines = [f"step {self.step}  lr {self.lr:.6g}  grad_norm {self.gradient_norm:.6g}"]
        for part in self.microbatches:
            samples = " ".join(map(str, part["indices"]))
            lines.append(f"  microbatch {part['number']}  loss {part['loss']:.6g}  samples {samples}")
        gradients = "  ".join(f"{name} {norm:.4g}" for name, norm in self.largest_gradients.items())
        return "\n".join([*lines, f"  largest gradients  {gradients}"])


def watched(trainer: Trainer, first: int, tell: Callable[[StepDetail], None]) -> Trainer:
    """The same trainer; rank 0's `tell` gets every step from `first` on, when an interval's metrics are read."""
    return _WatchedTrainer(trainer, _WatchedMetrics(trainer.step_metrics, trainer.learner.model, first, tell))


class _WatchedMetrics(StepMetrics):
    def __init__(
        self, step_metrics: StepMetrics, model: nn.Module, first: int, tell: Callable[[StepDetail], None]
    ) -> None:
        vars(self).update(vars(step_metrics))  # continues from the other's state
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._first = first
        self._tell = tell
        self._largest: list[dict[str, Tensor]] = []
        """Of each step since the last flush."""

    def note_gradients(self, scale: float) -> None:
        """Notes the largest of the reduced gradients, which have been multiplied by `scale`."""
        norms = torch.stack([p.grad.norm() for _, p in self._named if p.grad is not None]) / scale
        names = [name for name, p in self._named if p.grad is not None]
        values, places = norms.topk(min(LARGEST, len(names)))  # nan counts as the largest
        self._largest.append({names[place]: value for place, value in zip(places.tolist(), values, strict=True)})

    def flush(self, known: Collection[int] = ()) -> Report:
        steps = [step for step in zip(self._results, self._largest, strict=True) if step[0].step >= self._first]
        self._largest = []
        if steps:
            self._show([result for result, _ in steps], [largest for _, largest in steps])
        return super().flush(known)

    def _show(self, results: list[StepResult], all_largest: list[dict[str, Tensor]]) -> None:
        """Every rank knows its own microbatches, so all of them call it together."""
        sums, indices = self._group.all_reduce_host_(self._own(results)), self._indices(results)
        if not self._group.ranks.is_first:
            return
        for result, largest, parts, places in zip(results, all_largest, sums.tolist(), indices.tolist(), strict=True):
            microbatches = [
                {"number": number, "loss": loss / max(1.0, count), "indices": samples}
                for number, ((loss, count, *_), samples) in enumerate(zip(parts, places, strict=True))
            ]
            self._tell(
                StepDetail(
                    step=result.step,
                    lr=result.lr,
                    gradient_norm=float(result.gradient_norm),
                    microbatches=microbatches,
                    largest_gradients={name: float(norm) for name, norm in largest.items()},
                )
            )


class _WatchedTrainer(Trainer):
    def __init__(self, trainer: Trainer, metrics: _WatchedMetrics) -> None:
        vars(self).update(vars(trainer))
        self.step_metrics = self._watched = metrics

    def update(self, state: TrainState, lr: float, losses: Mapping[int, Tensor]) -> tuple[Tensor, bool]:
        self._watched.note_gradients(self.learner.scaler.get_scale())
        return super().update(state, lr, losses)
