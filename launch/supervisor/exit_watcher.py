"""Sees when each rank of this node ends, to the millisecond. Torch's agent looks only now and then, at all at once."""

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dist_train.rundir.codec import decode
from dist_train.rundir.records import AgentOutcome, ErrorRecord, RankRecord

from ..rank.page import ERROR, FACTS, Pages

_LOOK_S = 0.05
"""Seconds between two looks for ranks that have begun."""


def ranks_of(pages: Pages) -> list[RankRecord]:
    """What the ranks of this node have said about themselves."""
    found = (pages.get(number, FACTS) for number in range(pages.count - 1))
    return [decode(RankRecord, one) for one in found if one is not None]


def errors_of(pages: Pages) -> list[ErrorRecord]:
    """The exceptions that have ended ranks of this node."""
    found = (pages.get(number, ERROR) for number in range(pages.count - 1))
    return [decode(ErrorRecord, one) for one in found if one is not None]


def outcome_of(pages: Pages) -> AgentOutcome | None:
    """How the agent of this node saw the ranks end; None where it could not say."""
    said = pages.get(pages.count - 1, FACTS)
    return decode(AgentOutcome, said) if said else None


def agent_saw_a_failure(pages: Pages) -> bool:
    """Whether the agent has seen a rank end with anything but 0. It says so only of programs that are not ours."""
    return pages.get(pages.count - 1, ERROR) is not None


@contextmanager
def watch_exits(pages: Pages) -> Iterator[dict[int, int]]:
    """Watches the ranks of this node from a thread. Yields a dictionary that receives, for each rank that has ended,
    the time when that was first seen, in ns since boot."""
    ended: dict[int, int] = {}
    over, wakeup = threading.Event(), None
    with suppress(OSError):  # without a descriptor for it, the thread ends at its next look
        wakeup = os.eventfd(0)
    thread = threading.Thread(target=_watch, args=(pages, ended, over, wakeup), name="exit watcher", daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        if wakeup is not None:
            os.eventfd_write(wakeup, 1)
        thread.join()
        if wakeup is not None:
            os.close(wakeup)


def _watch(pages: Pages, ended: dict[int, int], over: threading.Event, wakeup: int | None) -> None:
    """Until `over` is set, and once more then. What can be read from `wakeup` ends the wait between two looks."""
    poll, open_ranks = select.poll(), dict[int, int]()
    if wakeup is not None:
        poll.register(wakeup, select.POLLIN)
    known, is_over = set[tuple[int, int]](), False
    while not is_over:
        is_over = over.is_set()
        begun = {(record.rank, record.pid) for record in ranks_of(pages)}
        for rank, pid in begun - known:
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:  # it has ended and is reaped, or no descriptor is left
                ended[rank] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            else:
                open_ranks[descriptor] = rank
                poll.register(descriptor, select.POLLIN)
        known |= begun
        for descriptor, _ in poll.poll(0 if is_over else _LOOK_S * 1000):
            if descriptor == wakeup:
                poll.unregister(wakeup)
                continue
            ended[open_ranks.pop(descriptor)] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            poll.unregister(descriptor)
            os.close(descriptor)
    for descriptor in open_ranks:
        os.close(descriptor)
