"""Losses and gradient norms of single steps, left on the device until a whole interval is read at once."""

import json
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dist_train.config.schema import RunConfig
from dist_train.data.broken import Broken
from dist_train.errors import UserCodeError
from dist_train.heartbeat import beat
from dist_train.parallel.overlap import Leash
from dist_train.parallel.process_group import ProcessGroup
from dist_train.report.budget import COLUMNS
from dist_train.report.words import Row
from dist_train.timing import NullTiming

ADVICE = "Try a smaller optimizer.lr, a longer schedule.warmup, or train.clip_norm"
MOST_NAMED = 64
"""Samples that a line names, of those whose loss is not finite."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one rank knows of one step.

    Attributes:
        step: its number, from 1.
        losses: by microbatch number, the sum over its valid targets, 0-dim.
        counts: by microbatch number, how many those are.
        indices: by microbatch number, int64 [m], its samples' places in the training set.
        gradient_norm: L2 norm of the whole gradient before clipping, 0-dim, the same on all ranks.
        lr: the learning rate used.
        figures: by microbatch number, what the task gives to log: name -> (sum, count).
        applied: False where the update was skipped, because something was not finite.
        broken: the samples of its share that could not be read, in their order.
    """

    step: int
    losses: Mapping[int, Tensor]
    counts: Mapping[int, int | Tensor]
    indices: Mapping[int, Tensor]
    gradient_norm: Tensor
    lr: float
    figures: Mapping[int, Mapping[str, tuple[Tensor, int | Tensor]]] = field(default_factory=dict)
    applied: bool = True
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """An interval of steps, the same on every rank.

    Attributes:
        rows: one a step, for metrics.jsonl.
        figures: those of the task, over the whole interval.
        samples: one a step, for samples.jsonl; empty unless asked for.
        skipped: one line for each step whose update was skipped.
        diverged: why the training cannot go on, if so: a step was not finite, and its update was applied.
        broken: (step, sample) of each that is newly found to be broken, in the order of the training.
        times: by rank, what it spent its time on, as report/budget.py's COLUMNS say.
    """

    rows: list[Row]
    figures: dict[str, float]
    samples: list[Row]
    skipped: list[str]
    diverged: str | None
    broken: list[tuple[int, Broken]]
    times: list[list[float]] = field(default_factory=list)


class StepMetrics:
    """Collects an interval of steps."""

    def __init__(
        self, group: ProcessGroup, config: RunConfig, steps_per_epoch: int, timing: NullTiming | None = None
    ) -> None:
        self._group, self._config, self._steps_per_epoch = group, config, steps_per_epoch
        self._timing = timing or NullTiming()
        self._results: list[StepResult] = []
        self._leash = Leash(group.device)

    def position(self, step: int) -> Row:
        """Where a row stands: after `step` steps, so many epochs and samples."""
        epoch, samples_seen = step / self._steps_per_epoch, step * self._config.batch.global_size
        return {"step": step, "epoch": epoch, "samples_seen": samples_seen}

    def add(self, result: StepResult) -> None:
        self._leash.step()
        self._timing.end_step(len(result.losses))
        beat("step", result.step)
        self._results.append(result)

    def flush(self, known: Collection[int] = ()) -> Report:
        """What happened since the last flush; all ranks call it together.

        Args:
            known: the places of the samples that are broken, as far as was told; the same on all ranks.
        """
        results, self._results = self._results, []
        if not results:
            return Report(rows=[], figures={}, samples=[], skipped=[], diverged=None, broken=[])
        # Every entry is filled by one rank and zero on the others, so adding them up changes no bit.
        known = set(known)
        own = [(result.step, one) for result in results for one in result.broken if one.index not in known]
        sums, times = self._reduced(self._own(results, len(own)))
        broken = self._all(own) if sums[..., 2].any() else []
        norms = torch.stack([result.gradient_norm for result in results]).tolist()
        names, figures = self._figures(results, sums[..., 3])
        rows, skipped, diverged = [], [], None
        for place, (result, by_microbatch, norm) in enumerate(zip(results, sums.tolist(), norms, strict=True)):
            losses, counts, *_ = zip(*by_microbatch, strict=True)
            loss = math.fsum(losses) / max(sum(counts), 1.0) if all(map(math.isfinite, losses)) else math.nan
            row = {**self.position(result.step), "loss": loss, "lr": result.lr, "grad_norm": norm}
            row |= _means(names, figures[place : place + 1])
            if so_far := len(known) + sum(step <= result.step for step, _ in broken):
                row["broken_samples"] = so_far
            rows.append(row if result.applied else {**row, "left_out": True})
            what = self._not_finite(result, losses, norm)
            if what is not None and result.applied:
                diverged = f"{what}. Nothing of it was saved; the last checkpoint is from before. {ADVICE}"
                break  # what follows was computed with what this step has left behind
            if not result.applied:
                skipped.append(f"! {what}; its update was skipped")
        samples = []
        if self._config.tracking.samples:
            table = self._indices(results[: len(rows)]).tolist()
            samples = [
                {"step": row["step"], "epoch": row["epoch"], "indices": indices}
                for row, indices in zip(rows, table, strict=True)
            ]
        interval = _means(names, figures[: len(rows)])
        return Report(
            rows=rows, figures=interval, samples=samples, skipped=skipped, diverged=diverged, broken=broken, times=times
        )

    def _reduced(self, own: Tensor) -> tuple[Tensor, list[list[float]]]:
        """The ranks' tables as one, and with them, since it costs next to nothing there, where their time went."""
        times = self._timing.table(self._group.ranks.rank, self._group.ranks.world_size)
        both = self._group.all_reduce_host_(torch.cat([own.view(-1), times]))
        return both[: own.numel()].view_as(own), both[own.numel() :].view(-1, len(COLUMNS)).tolist()

    def _all(self, own: list[tuple[int, Broken]]) -> list[tuple[int, Broken]]:
        """Those of all ranks, each sample once, in the order of the training: in a step the ranks have it already."""
        everyone = sorted(chain.from_iterable(self._group.gather_objects(own)), key=lambda found: found[0])
        first: dict[int, tuple[int, Broken]] = {}
        for step, one in everyone:
            first.setdefault(one.index, (step, one))
        return list(first.values())

    def _own(self, results: list[StepResult], broken: int = 0) -> Tensor:
        """Float64 [steps, V, 4]: loss sum and count; in one of this rank's places how many samples are broken, so that
        all ranks know without asking whether there is anything to tell; and what the names of the figures are."""
        table = torch.zeros(len(results), self._config.batch.settled, 4, dtype=torch.float64)
        numbers = list(results[0].losses)
        table[0, numbers[0], 2] = broken
        losses = torch.stack([torch.stack(list(result.losses.values())) for result in results])
        table[:, numbers, 0] = losses.to("cpu", torch.float64)
        counts = [[float(count) for count in result.counts.values()] for result in results]
        table[:, numbers, 1] = torch.tensor(counts, dtype=torch.float64)
        named = [[_sign_of(result.figures.get(number, {})) for number in numbers] for result in results]
        table[:, numbers, 3] = torch.tensor(named, dtype=torch.float64)
        return table

    def _figures(self, results: list[StepResult], signs: Tensor) -> tuple[list[str], Tensor]:
        """The names of the task's figures, and float64 [steps, V, names, 2] with their sums and counts.

        Raises:
            UserError: on every rank, when not all microbatches have the same, or one has a name of ours.
        """
        if not signs.any():
            return [], torch.zeros(len(results), 1, 0, 2)
        names = sorted(next(iter(results[0].figures.values())))
        if (signs != signs[0, 0]).any() or OURS & set(names):
            raise UserCodeError(
                f"task {self._config.task.name}: the figures of a step are called {', '.join(names) or 'nothing'}; all "
                f"microbatches must have the same ones, and none of {', '.join(sorted(OURS))}"
            )
        table = torch.zeros(len(results), self._config.batch.settled, len(names), 2, dtype=torch.float64)
        for row, result in zip(table, results, strict=True):
            for number, figures in result.figures.items():
                row[number] = torch.tensor([[float(part) for part in figures[name]] for name in names])
        return names, self._group.all_reduce_host_(table)

    def _not_finite(self, result: StepResult, losses: tuple[float, ...], norm: float) -> str | None:
        """What of the step is not finite, and made of which samples; None where all of it is."""
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        scaled = self._config.train.precision == "fp16"  # the scaler skips steps whose gradient overflows
        if not bad and (math.isfinite(norm) or scaled):
            return None
        if not bad:
            return f"step {result.step}: the gradient is not finite"
        indices = self._indices([result])[0, bad].flatten().tolist()
        named = ", ".join(map(str, indices[:MOST_NAMED])) + (", …" if len(indices) > MOST_NAMED else "")
        numbers = ", ".join(map(str, bad))
        return f"step {result.step}: the loss of microbatch {numbers} is not finite (training samples {named})"

    def _indices(self, results: list[StepResult]) -> Tensor:
        """Int64 [steps, V, m]: the samples that were really used, as each rank knows its own."""
        batch = self._config.batch
        table = torch.zeros(len(results), batch.settled, batch.microbatch_size, dtype=torch.int64)
        for row, result in zip(table, results, strict=True):
            for number, indices in result.indices.items():
                row[number] = indices
        return self._group.all_reduce_host_(table)


OURS = {"step", "epoch", "samples_seen", "loss", "lr", "grad_norm", "broken_samples", "left_out", "time", "kind"}
"""Names in a row that no figure of a task may have."""


def _sign_of(figures: Mapping[str, Any]) -> int:
    """A number that tells sets of names apart; 0 for none."""
    return 1 + zlib.crc32(json.dumps(sorted(figures)).encode()) if figures else 0


def _means(names: list[str], table: Tensor) -> dict[str, float]:
    """Each figure of float64 [steps, V, names, 2], sum by count; added in the order of the steps and microbatches."""
    sums, counts = table.flatten(0, 1).unbind(-1)
    return {
        name: math.fsum(sums[:, place].tolist()) / max(math.fsum(counts[:, place].tolist()), 1.0)
        for place, name in enumerate(names)
    }
