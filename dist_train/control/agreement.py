"""How the ranks agree on what was asked of any of them, without waiting for each other."""

import time
from typing import Any

import torch

from dist_train.control.stop import Request, StopFlag
from dist_train.parallel.process_group import ProcessGroup

EVERY_S = 0.1
"""Seconds between two agreements, where that is at most MOST_STEPS steps."""
MOST_STEPS = 4
"""Steps between two agreements at most: the next steps may be much longer than the last ones."""


class Agreement:
    """The maximum of all ranks' requests. The ranks agree every one to MOST_STEPS steps. Each answer arrives one step
    later: it travels while that step computes. So a stop ends the training within MOST_STEPS + 1 steps."""

    def __init__(self, group: ProcessGroup, flag: StopFlag) -> None:
        self._group = group
        self._flag = flag
        self._values = torch.zeros(2, dtype=torch.int64)
        """The request, and the microseconds of a step: the slowest rank's, so that all count the same steps."""
        self._under_way: Any = None
        self._steps, self._asked_at = 1, time.monotonic() - EVERY_S
        """Steps from one agreement to the next, and when the last agreement began."""
        self._left = 0
        """Steps until the next agreement."""

    def next(self) -> Request:
        """The same answer on every rank; to be called by all of them after every step."""
        agreed = self.close()
        self._left -= 1
        if self._left <= 0:
            self._ask()
        return agreed

    def _ask(self) -> None:
        now = time.monotonic()
        took, self._asked_at = (now - self._asked_at) / self._steps, now
        self._values[0], self._values[1] = int(self._flag.take()), int(took * 1e6)
        self._under_way = self._group.start_all_reduce_(self._values, maximum=True)

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether a signal has asked this rank to stop. The other ranks need not know of it yet."""
        return self._flag.request.stops

    def now(self) -> Request:
        """The same as `next`, without the delay: all ranks wait for each other."""
        before = self.close()
        self._ask()
        return max(before, self.close())

    def close(self) -> Request:
        """Waits for the agreement under way, so that no rank leaves a peer waiting. Returns its answer, else NONE."""
        if self._under_way is None:
            return Request.NONE
        self._under_way.wait()
        self._under_way = None
        request, microseconds = self._values.tolist()
        self._steps = self._left = min(max(1, int(EVERY_S * 1e6) // max(1, microseconds)), MOST_STEPS)
        return Request(request)
