"""When the ranks of one agent died, to the millisecond: torch's agent looks only now and then, and at all at once."""

import os
import select
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from dist_train.rundir.records import read_all

_PAUSE = 0.05
"""Seconds between two looks for ranks that have begun."""


def ranks_of(agent: int, host: str, folder: Path) -> list[dict[str, Any]]:
    """What the agent's ranks have written down of themselves; process ids alone are the same on several hosts, and in
    several containers on one."""
    here = os.stat("/proc/self/ns/pid").st_ino
    return [
        session
        for session in read_all(folder)
        if (session["agent"], session["host"], session["pid_namespace"]) == (agent, host, here)
    ]


class Deaths:
    """Watches the ranks that write themselves down in `folder`, from a thread, while it is open.

    Only the agent's own: of another's, which may be of another node on this host, nobody here will know the exit code.
    """

    def __init__(self, folder: Path, agent: int, host: str) -> None:
        self._folder, self._agent, self._host = folder, agent, host
        self._died: dict[int, int] = {}
        self._known: set[tuple[int, int]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deaths", daemon=True)

    def __enter__(self) -> "Deaths":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def stamps(self) -> dict[int, int]:
        """Boot time in ns at which a rank was first known to be dead."""
        return dict(self._died)

    def _watch(self) -> None:
        poll, ranks = select.poll(), {}
        while not self._over.is_set():
            for rank, descriptor in self._new():
                ranks[descriptor] = rank
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(_PAUSE * 1000):
                self._died[ranks.pop(descriptor)] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                poll.unregister(descriptor)
                os.close(descriptor)
        for descriptor in ranks:
            os.close(descriptor)

    def _new(self) -> list[tuple[int, int]]:
        """Rank and pidfd of those that have begun since the last look."""
        found = []
        for session in ranks_of(self._agent, self._host, self._folder):
            key = (session["rank"], session["pid"])
            if key in self._known:
                continue
            self._known.add(key)
            try:
                found.append((session["rank"], os.pidfd_open(session["pid"])))
            except OSError:  # gone and buried, or no descriptor left
                self._died[session["rank"]] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return found
