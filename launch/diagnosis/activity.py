"""What a rank and its children have done so far, from /proc."""

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..processes import descendants, stat

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_IS_EXACT = Path("/proc/self/schedstat").exists()
LEAST_LOAD = 0.02
"""Share of a core above which a rank is at work. Threads that only wait take a third of a hundredth (gloo's looks
around a hundred times a second), and where cores are scarce a rank at work still gets more than this."""


@dataclass(frozen=True)
class Activity:
    """Of a rank with its children, since they began."""

    state: str
    """The rank's own state letter."""
    cpu_ns: int
    """Time on a core."""
    bytes: int
    """Read and written."""

    def did_something_since(self, before: "Activity", seconds: float) -> bool:
        # A thread that has ended takes its time with it: that counts as something done, too.
        load = abs(self.cpu_ns - before.cpu_ns) / 1e9
        return self.bytes != before.bytes or (seconds > 0 and load > LEAST_LOAD * seconds)


def activity(rank: int, children: dict[int, list[int]], aside: Collection[int] = ()) -> Activity:
    """Of a rank and what is below it in a `processes.family_tree`.

    Args:
        aside: threads of the rank that do not count, and processes below it, with what is below those.
    """
    found = stat(rank)
    others = {pid for one in aside for pid in (one, *descendants(one, children))}
    processes = [Path(f"/proc/{pid}") for pid in (rank, *descendants(rank, children)) if pid not in others]
    return Activity(
        state=found.state if found else "X",
        cpu_ns=sum(_cpu_ns(process, aside) for process in processes),
        bytes=sum(_bytes(process) for process in processes)
        - sum(_bytes(Path(f"/proc/{rank}/task/{one}")) for one in aside),
    )


def _cpu_ns(process: Path, but: Collection[int]) -> int:
    """To the nanosecond; in ticks where the kernel keeps no such record. A tick is charged whole to whoever happens to
    run, so a thread that wakes on time, and at once sleeps again, seems to do more than it does."""
    spent = 0
    for thread in process.glob("task/[0-9]*"):
        with suppress(OSError):  # it has ended
            if int(thread.name) in but:
                continue
            if _IS_EXACT:
                spent += int((thread / "schedstat").read_text().split()[0])
            else:
                fields = (thread / "stat").read_text().rpartition(")")[2].split()
                spent += (int(fields[11]) + int(fields[12])) * _TICK_NS
    return spent


def _bytes(process: Path) -> int:
    """Read and written, by a process with the threads that it has had, or by one thread."""
    try:
        lines = (process / "io").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))
