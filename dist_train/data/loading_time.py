"""What loading a sample takes its time for: waiting for storage, computing it, augmenting it.

A read that waits and a decoder that computes are told apart by what the process does, whoever wrote them, so a data set
need not say anything. What is not waiting and not `augment` is computing.
"""

import time
from collections.abc import Callable
from typing import Any

from dist_train.timing import queued_s


class LoadingTime:
    """Of one request after another, in one process."""

    def __init__(self) -> None:
        self._begun = self._busy = self._augmented = 0.0

    def begin(self) -> None:
        self._begun, self._busy, self._augmented = time.perf_counter(), _busy(), 0.0

    def end(self) -> tuple[float, float, float]:
        """Seconds since `begin`: waited, computed, augmented."""
        took, busy = time.perf_counter() - self._begun, _busy() - self._busy
        waited = max(0.0, took - busy)
        return waited, max(0.0, took - waited - self._augmented), self._augmented

    def of_augment(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time counts as augmenting."""

        def measured(*given: Any) -> Any:
            begun = time.perf_counter()
            result = function(*given)
            self._augmented += time.perf_counter() - begun
            return result

        return measured


def _busy() -> float:
    """Seconds in which this thread has computed, or would have if a core had been free: else it waited, or slept."""
    return time.thread_time() + queued_s()
