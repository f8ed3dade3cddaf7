"""Requests to stop: a signal sets a flag and nothing else; the ranks agree on one step, and save outside of the
handler."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from dist_train.errors import ExitCode


class Request(IntEnum):
    """What this rank was asked to do; where ranks differ, the largest counts."""

    NONE = 0
    SAVE = 1
    """SIGUSR2: save and go on."""
    TIME_UP = 2
    """train.stop_after."""
    REQUEUE = 3
    """SIGUSR1: save, stop, start me again."""
    TERMINATE = 4
    INTERRUPT = 5

    @property
    def stops(self) -> bool:
        return self > Request.SAVE


REQUESTS = {
    signal.SIGUSR2: Request.SAVE,
    signal.SIGUSR1: Request.REQUEUE,
    signal.SIGTERM: Request.TERMINATE,
    signal.SIGINT: Request.INTERRUPT,
}
EXIT_CODES = {
    Request.TIME_UP: ExitCode.DONE,
    Request.REQUEUE: ExitCode.REQUEUE,
    Request.TERMINATE: ExitCode.TERMINATED,
    Request.INTERRUPT: ExitCode.INTERRUPTED,
}
_SAME_EVENT_S = 0.1
"""A scheduler's signal can reach a rank twice, directly and through torchrun; that is one request."""


class StopFlag:
    """This process's own request, from signals and the clock."""

    def __init__(self) -> None:
        self.request = Request.NONE
        self._since = float("inf")
        self._deadline = float("inf")
        self.supervised = False
        """Whether a launcher supervises this process. Then the launcher ends it on a second request: here a second
        signal may be of the same event."""

    def limit(self, seconds: float | None) -> None:
        """Asks to stop once `seconds` have passed."""
        self._deadline = float("inf") if seconds is None else time.monotonic() + seconds

    @contextmanager
    def handling_signals(self) -> Iterator["StopFlag"]:
        """The handlers are in place inside the block; a second SIGINT or SIGTERM there ends the process at once."""
        before = {number: signal.signal(number, self._handle) for number in REQUESTS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now, request = time.monotonic(), REQUESTS[signal.Signals(number)]
        if request >= Request.TERMINATE:
            if not self.supervised and now - self._since > _SAME_EVENT_S:
                os._exit(128 + number)
            self._since = min(self._since, now)
        self.request = max(self.request, request)

    def take(self) -> Request:
        """The request so far. A request to save and go on is returned once."""
        request = self.request
        if request == Request.SAVE:
            self.request = Request.NONE
        if time.monotonic() >= self._deadline:
            request = max(request, Request.TIME_UP)
        return request
