"""When the ranks of one agent ended, to the millisecond: torch's agent looks only now and then, and at all at once."""

import os
import select
import threading
import time

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


class ExitWatcher:
    """Watches the ranks of one agent, from a thread, while it is open.

    It leaves out those of other agents, which may run for another node on this host: nobody here learns their exit
    codes.
    """

    def __init__(self, generation: GenerationDir, agent: int) -> None:
        self._generation, self._agent = generation, agent
        self._ended: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="exit watcher", daemon=True)

    def __enter__(self) -> "ExitWatcher":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def stamps(self) -> dict[int, int]:
        """For each rank that has ended, the time at which that was first seen, in ns since boot."""
        return dict(self._ended)

    def _watch(self) -> None:
        poll, open_ranks = select.poll(), dict[int, int]()
        known: set[tuple[int, int]] = set()
        while not self._over.is_set():
            begun = {(record.rank, record.pid) for record in ranks_of(self._agent, self._generation)}
            for rank, pid in begun - known:
                try:
                    descriptor = os.pidfd_open(pid)
                except OSError:  # it has ended and is reaped, or no descriptor is left
                    self._ended[rank] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                else:
                    open_ranks[descriptor] = rank
                    poll.register(descriptor, select.POLLIN)
            known |= begun
            for descriptor, _ in poll.poll(_LOOK_S * 1000):
                self._ended[open_ranks.pop(descriptor)] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                poll.unregister(descriptor)
                os.close(descriptor)
        for descriptor in open_ranks:
            os.close(descriptor)
