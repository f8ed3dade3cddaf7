"""Ranks that the others wait for, step after step. No torch here.

In a step all wait for the slowest, so on the clock every rank's steps take as long. What tells them apart is each
rank's own time in the phases in which nobody else has a part, and how long it waits for the others: the late one waits
least. Both are durations, so the hosts' clocks need not agree.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_train.report.budget import COLUMNS, EACH, MEDIANS, OF_A_STEP, Times
from dist_train.report.words import Row

STEPS, SECONDS = 10, 1.0
"""That a look at the ranks covers at least."""
SHARE, LEAST = 0.15, 0.002
"""Of a step, and seconds, that a rank must cost the others to be called late; it keeps up again below half of that."""
IN_A_ROW = 3
"""Looks that have to agree: a minute's disturbance is not worth a line."""
LONG_S = 60.0
"""Seconds that a rank must wait for a core before that is said: another program on its core comes and goes."""
WHERE = {"input": "loader", "transfer": "transfer to the device", "core": "wait for a core"}
"""What the phases are called, of those that have another name."""


@dataclass(frozen=True, kw_only=True)
class Late:
    """A rank that is late.

    Attributes:
        phase: in which, as COLUMNS has it.
        seconds: that it costs the others in each step.
        share: of a step.
    """

    rank: int
    phase: str
    seconds: float
    share: float

    def __str__(self) -> str:
        where = WHERE.get(self.phase, self.phase)
        took = f"{self.seconds:.2g} s" if self.seconds >= 0.1 else f"{1000 * self.seconds:.2g} ms"
        return (
            f"rank {self.rank} is late: {took} a step in its {where} ({100 * self.share:.0f} % of a step); all ranks "
            "wait for it"
        )

    def as_row(self) -> Row:
        return {
            "rank": self.rank,
            "phase": self.phase,
            "seconds": round(self.seconds, 6),
            "share": round(self.share, 3),
        }

    @classmethod
    def from_rows(cls, rows: Any) -> "list[Late]":
        """Of `late` in metrics.jsonl, which somebody may have written by hand."""
        try:
            kinds = {"rank": int, "phase": str, "seconds": float, "share": float}
            return [cls(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows or ()]
        except (KeyError, TypeError, ValueError):
            return []


class LateRanks:
    """Those of a session, found from interval to interval."""

    def __init__(self) -> None:
        self._tables: list[list[dict[str, float]]] = []
        """By interval and rank, since the last look."""
        self._told: dict[int, Late] = {}
        self._agreeing: dict[int, tuple[str, int, float]] = {}
        """By rank, where looks in a row saw something else than was told: the phase, how many, and their seconds."""

    @property
    def late(self) -> list[Late]:
        return [self._told[rank] for rank in sorted(self._told)]

    def add(self, table: Times) -> list[str]:
        """Takes in an interval, and returns what is to be said now."""
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in table]
        if len(rows) < 2 or not rows[0]["steps"]:
            return []
        self._tables.append(rows)
        steps = sum(rows[0]["steps"] for rows in self._tables)
        seconds = sum(rows[0][phase] for rows in self._tables for phase in OF_A_STEP)
        if steps < STEPS or seconds < SECONDS:
            return []
        columns = [
            {name: statistics.median(rows[rank][name] for rows in self._tables) for name in COLUMNS}
            for rank in range(len(rows))
        ]
        self._tables = []
        looks = [_look(rank, columns, seconds / steps) for rank in range(len(rows))]
        return [line for rank, found in enumerate(looks) for line in self._turn(rank, found, seconds)]

    def _turn(self, rank: int, found: Late | None, seconds: float) -> list[str]:
        told = self._told.get(rank)
        if found is not None and told is None and found.share < SHARE:
            found = None
        phase = found.phase if found is not None else ""
        if phase == (told.phase if told is not None else ""):
            self._agreeing.pop(rank, None)
            if found is not None:
                self._told[rank] = found
            return []
        before, looks, took = self._agreeing.get(rank, (phase, 0, 0.0))
        looks, took = (looks + 1, took + seconds) if before == phase else (1, seconds)
        self._agreeing[rank] = (phase, looks, took)
        if looks < IN_A_ROW or (phase == "core" and took < LONG_S):
            return []
        del self._agreeing[rank]
        if found is None:
            del self._told[rank]
            return [f"rank {rank} keeps up with the others again"]
        self._told[rank] = found
        return [f"! {found}"]


def _look(rank: int, columns: Sequence[dict[str, float]], step: float) -> Late | None:
    """What a rank costs the others, where that is half of what is called late.

    Args:
        step: seconds.
    """
    own = columns[rank]
    others = [row for place, row in enumerate(columns) if place != rank]

    def more(name: str) -> float:
        """Seconds of a step that it takes beyond the others."""
        times = own["microbatches"] / own["steps"] if name in EACH else 1.0
        return times * (own[f"median {name}"] - statistics.median(row[f"median {name}"] for row in others))

    costs = {phase: more(phase) for phase in MEDIANS if phase not in ("exchange", "core")}
    waited, every = max(0.0, more("core")), sum(costs.values())
    for phase, excess in ((max(costs, key=costs.__getitem__), every - waited), ("core", min(waited, every))):
        cost = min(excess, -more("exchange"))
        if cost >= LEAST / 2 and cost / step >= SHARE / 2:
            return Late(rank=rank, phase=phase, seconds=cost, share=cost / step)
    return None
