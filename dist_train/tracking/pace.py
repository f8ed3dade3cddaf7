"""How fast it goes: samples per second and the time left, from a monotonic clock."""

import time
from collections.abc import Callable

from dist_train.tracking.base import RunFacts


class Pace:
    """Told of every step and every evaluation, says the speed between two questions.

    The speed leaves out evaluations (the time from the last step to the end of the evaluation) and the first step of
    a session, which carries starting and compiling. The time left counts evaluations: the clock on the wall does too.
    """

    def __init__(self, facts: RunFacts, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._batch = facts.global_batch
        self._end = facts.stop_step or facts.total_steps
        stop_after = facts.config.train.stop_after
        self._deadline = clock() + stop_after.seconds if stop_after is not None and stop_after.is_time else None
        self._first: tuple[float, int] | None = None
        self._mark: float | None = None
        self._busy = 0.0
        self._counted = 0
        self._step = facts.first_step

    def tick(self, step: int) -> None:
        now = self._clock()
        if self._mark is None:
            self._first, self._counted = (now, step), step
        else:
            self._busy += now - self._mark
        self._mark, self._step = now, step

    def evaluated(self) -> None:
        """An evaluation ended just now."""
        if self._mark is not None:
            self._mark = self._clock()

    def samples_per_s(self) -> float | None:
        """Speed since the last call; None when no whole step lies between."""
        steps, seconds = self._step - self._counted, self._busy
        if steps <= 0 or seconds <= 0:
            return None
        self._counted, self._busy = self._step, 0.0
        return steps * self._batch / seconds

    def seconds_left(self) -> float | None:
        """From the mean over this session; None in its first second and first steps, when that says nothing yet."""
        if self._first is None:
            return None
        now = self._clock()
        elapsed, steps = now - self._first[0], self._step - self._first[1]
        if elapsed < 1 or steps < 3:
            return None
        left = (self._end - self._step) * elapsed / steps
        return max(0.0, left if self._deadline is None else min(left, self._deadline - now))
