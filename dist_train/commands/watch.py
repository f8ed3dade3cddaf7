"""What `dist-train replay --show` shows of a step: its microbatches' losses and samples, and its largest gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_train.checkpoint.state import TrainState
from dist_train.parallel.process_group import ProcessGroup
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
            lines.append(f"  microbatch {part['number']}  loss {part['loss']:.6g}  samples {_words(part['indices'])}")
        gradients = "  ".join(f"{name} {norm:.4g}" for name, norm in self.largest_gradients.items())
        return "\n".join([*lines, f"  largest gradients  {gradients}"])


def _words(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def watched(trainer: Trainer, group: ProcessGroup, first: int, tell: Callable[[StepDetail], None]) -> Trainer:
    """The same trainer; rank 0's `tell` gets every step from `first` on, when an interval's metrics are read."""
    watch = Watch(group, trainer, first, tell)
    return _WatchedTrainer(trainer, watch)


class Watch:
    """Collects, on every rank, the details of its steps."""

    def __init__(self, group: ProcessGroup, trainer: Trainer, first: int, tell: Callable[[StepDetail], None]) -> None:
        self._group = group
        self._microbatches = trainer.config.batch.settled
        self._size = trainer.config.batch.microbatch_size
        self._named = [(name, p) for name, p in trainer.learner.model.named_parameters() if p.requires_grad]
        self._first = first
        self._tell = tell
        self._largest: dict[str, Tensor] = {}
        self._seen: list[tuple[StepResult, dict[str, Tensor]]] = []

    def gradients(self, scale: float) -> None:
        """Notes the largest of the reduced gradients, which have been multiplied by `scale`."""
        norms = torch.stack([p.grad.norm() for _, p in self._named if p.grad is not None]) / scale
        names = [name for name, p in self._named if p.grad is not None]
        values, places = norms.topk(min(LARGEST, len(names)))  # nan counts as the largest
        self._largest = {names[place]: value for place, value in zip(places.tolist(), values, strict=True)}

    def add(self, result: StepResult) -> None:
        if result.step >= self._first:
            self._seen.append((result, self._largest))

    def tell(self) -> None:
        """Reports the steps added since the last call; all ranks call it together."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        losses = torch.zeros(len(seen), self._microbatches, dtype=torch.float64)
        indices = torch.zeros(len(seen), self._microbatches, self._size, dtype=torch.int64)
        for row, (result, _) in enumerate(seen):
            for number, loss in result.losses.items():
                losses[row, number] = float(loss) / max(1, int(result.counts[number]))
                indices[row, number] = result.indices[number]
        # Every entry is filled by one rank and zero on the others, so adding them up changes no bit.
        losses, indices = self._group.all_reduce_host_(losses), self._group.all_reduce_host_(indices)
        if not self._group.ranks.is_first:
            return
        for (result, largest), of_losses, of_indices in zip(seen, losses.tolist(), indices.tolist(), strict=True):
            self._tell(_detail(result, largest, of_losses, of_indices))


def _detail(
    result: StepResult, largest: Mapping[str, Tensor], losses: list[float], indices: list[list[int]]
) -> StepDetail:
    return StepDetail(
        step=result.step,
        lr=result.lr,
        gradient_norm=float(result.gradient_norm),
        microbatches=[
            {"number": number, "loss": loss, "indices": places}
            for number, (loss, places) in enumerate(zip(losses, indices, strict=True))
        ],
        largest_gradients={name: float(norm) for name, norm in largest.items()},
    )


class _WatchedMetrics(StepMetrics):
    def __init__(self, step_metrics: StepMetrics, watch: Watch) -> None:
        vars(self).update(vars(step_metrics))  # continues from the other's state
        self._watch = watch

    def add(self, result: StepResult) -> None:
        self._watch.add(result)
        super().add(result)

    def flush(self) -> Report:
        self._watch.tell()
        return super().flush()


class _WatchedTrainer(Trainer):
    def __init__(self, trainer: Trainer, watch: Watch) -> None:
        vars(self).update(vars(trainer))
        self.step_metrics = _WatchedMetrics(trainer.step_metrics, watch)
        self._watch = watch

    def update(self, state: TrainState, lr: float, losses: Mapping[int, Tensor]) -> tuple[Tensor, bool]:
        self._watch.gradients(self.learner.scaler.get_scale())
        return super().update(state, lr, losses)
