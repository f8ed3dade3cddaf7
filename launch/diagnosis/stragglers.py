"""Ranks that are slow while the run goes on: in a step all wait for the slowest, so every rank's steps take as long.

What tells them apart is a rank's own work of a step, loading and forward pass, which no other rank has a part in.
"""

import statistics
import time
from collections.abc import Mapping

from .evidence import Heartbeat
from .formatting import named

EVERY = 5.0
"""Seconds between two looks."""
TIMES, LEAST = 1.5, 0.005
"""A rank is slow whose own work takes this much longer than the median of the others', and seconds more at least."""
AGAIN = 1.2
"""And it keeps up again when it is below this."""
IN_A_ROW = 3
"""Looks that have to agree: a minute's disturbance is not worth a line."""
STEPS = 20
"""Steps that the medians are made of at least."""


class Stragglers:
    """Of one generation, on one node."""

    def __init__(self) -> None:
        self._next = 0.0
        self._rows: dict[int, int] = {}
        """Looks in a row at which a rank was otherwise than what was said of it."""
        self._slow: set[int] = set()

    def look(self, hearts: Mapping[int, Heartbeat], now: float | None = None) -> list[str]:
        """What is to be said; now and then, and only where all ranks tell of their work."""
        now = time.monotonic() if now is None else now
        known = {rank: heart.work for rank, heart in hearts.items() if heart.worked >= STEPS and heart.phase == "step"}
        if now < self._next or len(known) < len(hearts) or len(known) < 2:
            return []
        self._next = now + EVERY
        said = []
        for rank, work in sorted(known.items()):
            usual = statistics.median(other for one, other in known.items() if one != rank)
            falls_behind, keeps_up = work > TIMES * usual and work - usual > LEAST, work < AGAIN * usual
            is_otherwise = keeps_up if rank in self._slow else falls_behind
            self._rows[rank] = self._rows.get(rank, 0) + 1 if is_otherwise else 0
            if self._rows[rank] == IN_A_ROW:
                said.append(self._turn(rank, work, usual, [other for other in known if other != rank]))
        return said

    def _turn(self, rank: int, work: float, usual: float, others: list[int]) -> str:
        self._rows[rank] = 0
        if rank in self._slow:
            self._slow.remove(rank)
            return f"rank {rank} keeps up with the others again"
        self._slow.add(rank)
        return (
            f"rank {rank} is slow: loading and the forward pass of a microbatch take it {1000 * work:.3g} ms, "
            f"{named(others)} {1000 * usual:.3g} ms. They wait for it in every step"
        )
