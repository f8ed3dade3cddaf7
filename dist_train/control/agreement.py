"""How the ranks agree on what was asked of any of them, without waiting for each other."""

from typing import Any

import torch

from dist_train.control.stop import Request, StopFlag
from dist_train.parallel.process_group import ProcessGroup


class Agreement:
    """The maximum of all ranks' requests, one step late: it travels while the next step computes."""

    def __init__(self, group: ProcessGroup, flag: StopFlag) -> None:
        self._group = group
        self._flag = flag
        self._value = torch.zeros((), dtype=torch.int64)
        self._under_way: Any = None

    def next(self) -> Request:
        """The same answer on every rank; to be called by all of them after every step."""
        agreed = self.close()
        self._value.fill_(int(self._flag.take()))
        self._under_way = self._group.start_all_reduce_(self._value, maximum=True)
        return agreed

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether this rank was, by a signal; the others need not know of it."""
        return self._flag.request.stops

    def now(self) -> Request:
        """As `next`, without the delay: all ranks wait for each other."""
        before = self.next()
        return max(before, self.close())

    def close(self) -> Request:
        """Waits for what is under way, so that no rank leaves a peer waiting; the last answer."""
        if self._under_way is None:
            return Request.NONE
        self._under_way.wait()
        self._under_way = None
        return Request(int(self._value))
