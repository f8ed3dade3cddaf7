"""The phases that a rank's time is divided into, and what the ranks of an interval spent in each. No torch here."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dist_train.report.words import Row

EACH = ("input", "transfer", "forward", "backward")
"""What each microbatch takes anew."""
PHASES = (*EACH, "exchange", "optimizer", "other", "evaluation", "save")
"""Of a step; the last two come between some of them. `exchange` is the time that a rank waits for sums of the others,
and `other` what the host does between steps: metrics, console, trackers, callbacks."""
OF_A_STEP = PHASES[:-2]
STAGES = ("read", "decode", "augment")
"""Of loading a sample: waiting for storage, computing it, changing it at random."""
MEDIANS = (*EACH, "optimizer", "exchange", "core")
COLUMNS = (
    "steps",
    "microbatches",
    *PHASES,
    *(f"median {phase}" for phase in MEDIANS),
    "low exchange",
    *(f"loading {stage}" for stage in STAGES),
    "samples",
)
"""Of a rank and an interval: how many, seconds in each phase, the median over the steps of those that MEDIANS names, in
seconds of a microbatch for EACH and of a step for the others; the lower quartile of the wait for the others; seconds of
loading, and how many samples that were. `core` is the time in which it waited for a core, in any phase but exchange."""
Times = Sequence[Sequence[float]]
"""By rank, a number for each of COLUMNS."""
MOST_RANKS = 64
"""That a row of metrics.jsonl has; of more, those that wait least for the others."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the ranks did in one interval, or in several.

    Attributes:
        steps: how many.
        ranks: by rank, its seconds in each phase.
        exchanging: seconds that the exchange itself took: a rank that comes last waits for nothing else.
        queued: seconds in which the mean rank would have worked if a core had been free.
        loading: seconds in each stage for one sample, the mean of all ranks; empty where nothing was loaded.
    """

    steps: int
    ranks: dict[int, dict[str, float]]
    exchanging: float = 0.0
    queued: float = 0.0
    loading: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Times) -> "Budget | None":
        """None where no step is told of."""
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in table]
        if not rows or not rows[0]["steps"]:
            return None
        samples = sum(row["samples"] for row in rows)
        loading = {stage: sum(row[f"loading {stage}"] for row in rows) / samples for stage in STAGES if samples}
        ranks = {rank: {phase: row[phase] for phase in PHASES} for rank, row in enumerate(rows)}
        steps = int(rows[0]["steps"])
        exchanging = steps * min(row["low exchange"] for row in rows)
        queued = steps * statistics.fmean(row["median core"] for row in rows)
        return cls(steps=steps, ranks=ranks, loading=loading, exchanging=exchanging, queued=queued)

    @property
    def critical(self) -> dict[str, float]:
        """Seconds of the rank that waits least for the others: what it does is what a step takes."""
        return min(self.ranks.values(), key=lambda spent: spent["exchange"])

    @property
    def seconds(self) -> float:
        """That passed."""
        return sum(self.sums.values())

    @property
    def sums(self) -> dict[str, float]:
        """Seconds of the mean rank in each phase."""
        return {phase: statistics.fmean(spent[phase] for spent in self.ranks.values()) for phase in PHASES}

    @property
    def mean(self) -> dict[str, float]:
        """Of the mean rank: seconds of one step in each of OF_A_STEP, and of the whole interval in the others."""
        return {phase: value / self.steps if phase in OF_A_STEP else value for phase, value in self.sums.items()}

    def as_row(self) -> Row:
        """For `time` in metrics.jsonl. `ranks` has the seconds of the interval, in the order of PHASES."""
        shown = sorted(sorted(self.ranks, key=lambda rank: self.ranks[rank]["exchange"])[:MOST_RANKS])
        return {
            "steps": self.steps,
            "budget": {phase: _short(value) for phase, value in self.mean.items()},
            "ranks": {str(rank): [_short(self.ranks[rank][phase]) for phase in PHASES] for rank in shown},
            "loading": {stage: _short(value) for stage, value in self.loading.items()},
            "exchanging": _short(self.exchanging),
            "queued": _short(self.queued),
        }

    @classmethod
    def from_row(cls, row: Any) -> "Budget | None":
        """Of `time` in metrics.jsonl, which somebody may have written by hand."""
        try:
            ranks = {int(rank): dict(zip(PHASES, map(float, one), strict=True)) for rank, one in row["ranks"].items()}
            loading = {stage: float(row["loading"][stage]) for stage in STAGES if row["loading"]}
            more = {name: float(row[name]) for name in ("exchanging", "queued")}
            found = cls(steps=(steps := int(row["steps"])), ranks=ranks, loading=loading, **more)
            return found if ranks and steps > 0 and math.isfinite(found.seconds + sum(loading.values())) else None
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    @classmethod
    def sum(cls, budgets: Iterable["Budget"]) -> "Budget | None":
        """Of several intervals: those of the ranks that all have, and of the last ones where their number changed."""
        several = list(budgets)
        if not several:
            return None
        several = [one for one in several if one.ranks.keys() == several[-1].ranks.keys()]
        steps = sum(one.steps for one in several)
        ranks = {
            rank: {phase: sum(one.ranks[rank][phase] for one in several) for phase in PHASES}
            for rank in several[-1].ranks
        }
        loads = [one for one in several if one.loading]
        weight = sum(one.steps for one in loads)
        loading = {stage: sum(one.loading[stage] * one.steps for one in loads) / weight for stage in STAGES if weight}
        exchanging, queued = sum(one.exchanging for one in several), sum(one.queued for one in several)
        return cls(steps=steps, ranks=ranks, loading=loading, exchanging=exchanging, queued=queued)


def _short(value: float) -> float:
    """Four significant digits, more than a clock is good for."""
    return float(f"{value:.4g}")
