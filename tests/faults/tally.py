"""What a campaign has counted, and the one table that all of them end in."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a campaign is asked to do.

    Attributes:
        folder: for its files; empty.
        count: injections, at least.
        only: the number of the one injection, or run of injections, to do; all without it.
        quick: leave out points that can only repeat what their neighbours show, where a campaign knows such.
    """

    folder: Path
    count: int
    seed: int = 0
    only: int | None = None
    quick: bool = False

    def dice(self, *words: object) -> random.Random:
        """The same draws for the same seed and words, on every machine."""
        return random.Random(" ".join(map(str, (self.seed, *words))))

    def wants(self, number: int) -> bool:
        return self.only is None or self.only == number


@dataclass(kw_only=True)
class Tally:
    """One line of the table.

    Attributes:
        lost: what went wrong, a line each; "unequal" are those that ended, but not in the same bits.
        facts: what else is worth knowing.
    """

    campaign: str
    seed: int
    injections: int = 0
    lost: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def lose(self, number: int, what: str, *, unequal: bool = False) -> None:
        """Counts a failure and says at once how to see it again."""
        again = f"python -m tests.faults {self.campaign} --seed {self.seed} --only {number}"
        (self.unequal if unequal else self.lost).append(f"{self.campaign} {number}: {what}\n  again: {again}")
        print((self.unequal if unequal else self.lost)[-1], flush=True)

    @property
    def failures(self) -> list[str]:
        return [*self.lost, *self.unequal]


def table(tallies: Sequence[Tally]) -> str:
    """Campaign, injections, lost, unequal, and what else is known."""
    rows = [("campaign", "injections", "lost", "unequal", "also")]
    for tally in tallies:
        also = ", ".join(f"{name} {value}" for name, value in tally.facts.items())
        rows.append((tally.campaign, str(tally.injections), str(len(tally.lost)), str(len(tally.unequal)), also))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row in rows:
        numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:4], widths[1:], strict=True))
        lines.append(f"{row[0]:<{widths[0]}}  {numbers}  {row[4]}".rstrip())
    return "\n".join(lines)
