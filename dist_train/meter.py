"""Losses and gradient norms of single steps, left on the device until a whole interval is read at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_train.config.errors import ExitCode, UserError
from dist_train.process_group import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one rank knows of one step.

    Attributes:
        step: its number, from 1.
        losses: by microbatch number, the sum over its valid targets, 0-dim.
        counts: by microbatch number, how many those are.
        gradient_norm: L2 norm of the whole gradient before clipping, 0-dim, the same on all ranks.
        lr: the learning rate used.
    """

    step: int
    losses: Mapping[int, Tensor]
    counts: Mapping[int, int | Tensor]
    gradient_norm: Tensor
    lr: float


class Meter:
    """Collects an interval of steps.

    Args:
        infinite_norm_is_fine: True where a gradient scaler skips steps whose gradient overflows.
    """

    def __init__(
        self,
        group: ProcessGroup,
        *,
        microbatches: int,
        global_batch: int,
        steps_per_epoch: int,
        infinite_norm_is_fine: bool = False,
    ) -> None:
        self._group = group
        self._microbatches = microbatches
        self._global_batch = global_batch
        self._steps_per_epoch = steps_per_epoch
        self._infinite_norm_is_fine = infinite_norm_is_fine
        self._results: list[StepResult] = []

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self._steps_per_epoch

    def add(self, result: StepResult) -> None:
        self._results.append(result)

    def flush(self) -> list[dict[str, Any]]:
        """One row a step since the last flush, the same on every rank; all ranks call it together.

        Raises:
            UserError: (exit 11) on every rank, when a loss or gradient norm is not finite.
        """
        if not self._results:
            return []
        results, self._results = self._results, []
        # Every entry is filled by one rank and zero on the others, so adding them up changes no bit.
        sums = self._group.sum_(self._own(results))
        norms = torch.stack([result.gradient_norm for result in results]).tolist()
        rows = []
        for result, by_microbatch, norm in zip(results, sums.tolist(), norms, strict=True):
            losses, counts = zip(*by_microbatch, strict=True)
            loss = math.fsum(losses) / max(sum(counts), 1.0) if all(map(math.isfinite, losses)) else math.nan
            self._check(result.step, losses, norm)
            rows.append(self._row(result, loss, norm))
        return rows

    def _own(self, results: list[StepResult]) -> Tensor:
        """Float64 [steps, V, 2]: loss sum and count."""
        table = torch.zeros(len(results), self._microbatches, 2, dtype=torch.float64)
        losses = torch.stack([torch.stack(list(result.losses.values())) for result in results])
        numbers = list(results[0].losses)
        table[:, numbers, 0] = losses.to("cpu", torch.float64)
        counts = [[float(count) for count in result.counts.values()] for result in results]
        table[:, numbers, 1] = torch.tensor(counts, dtype=torch.float64)
        return table

    def _check(self, step: int, losses: tuple[float, ...], norm: float) -> None:
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        if not bad and (math.isfinite(norm) or self._infinite_norm_is_fine):
            return
        what = f"the loss of microbatch {', '.join(map(str, bad))}" if bad else "the gradient"
        raise UserError(
            f"step {step}: {what} is not finite. Nothing of it was saved; the last checkpoint is from before. "
            "Try a smaller optimizer.lr, a longer schedule.warmup, or train.clip_norm",
            ExitCode.NON_FINITE,
        )

    def _row(self, result: StepResult, loss: float, norm: float) -> dict[str, Any]:
        return {
            "step": result.step,
            "epoch": self.epoch(result.step),
            "samples_seen": result.step * self._global_batch,
            "loss": loss,
            "lr": result.lr,
            "grad_norm": norm,
        }
