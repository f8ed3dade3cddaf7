"""When the ranks of one agent ended, to the millisecond: torch's agent looks only now and then, and at all at once."""

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dist_train.rundir.codec import read_records
from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.process_id import boot
from dist_train.rundir.records import RankRecord

_LOOK_S = 0.05
"""Seconds between two looks for ranks that have begun."""


def ranks_of(agent: int, generation: GenerationDir) -> list[RankRecord]:
    """What the agent's ranks have written about themselves. The process id of an agent may be that of another one on
    another host, and in another container of this host."""
    return [rank for rank in read_records(RankRecord, generation.ranks) if (rank.agent, rank.boot) == (agent, boot())]


@contextmanager
def watch_exits(generation: GenerationDir, agent: int) -> Iterator[dict[int, int]]:
    """Watches the ranks of one agent from a thread. Yields a dictionary that receives, for each rank that has ended,
    the time when that was first seen, in ns since boot.

    It leaves out those of other agents, which may run for another node on this host: nobody here learns their exit
    codes.
    """
    ended: dict[int, int] = {}
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(generation, agent, ended, over), name="exit watcher", daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join()


def _watch(generation: GenerationDir, agent: int, ended: dict[int, int], over: threading.Event) -> None:
    poll, open_ranks = select.poll(), dict[int, int]()
    known: set[tuple[int, int]] = set()
    while not over.is_set():
        begun = {(record.rank, record.pid) for record in ranks_of(agent, generation)}
        for rank, pid in begun - known:
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:  # it has ended and is reaped, or no descriptor is left
                ended[rank] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            else:
                open_ranks[descriptor] = rank
                poll.register(descriptor, select.POLLIN)
        known |= begun
        for descriptor, _ in poll.poll(_LOOK_S * 1000):
            ended[open_ranks.pop(descriptor)] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            poll.unregister(descriptor)
            os.close(descriptor)
    for descriptor in open_ranks:
        os.close(descriptor)
