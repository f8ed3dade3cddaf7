"""What a rank and its children have done so far, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

from launch.processes import descendants, stat

_TICKS = os.sysconf("SC_CLK_TCK")
LEAST_LOAD = 0.02
"""Share of a core above which a rank is at work; its own clockwork takes a hundredth of that."""


@dataclass(frozen=True)
class Activity:
    """Of a rank with its children, since they began."""

    state: str
    """The rank's own state letter."""
    runnable: bool
    """One of them computes, or would if it were given a core."""
    ticks: int
    bytes: int

    def did_something_since(self, before: "Activity", seconds: float) -> bool:
        load = (self.ticks - before.ticks) / _TICKS
        return self.runnable or self.bytes != before.bytes or (seconds > 0 and load > LEAST_LOAD * seconds)


def activity(rank: int, children: dict[int, list[int]]) -> Activity:
    """Of a rank and what is below it in a `processes.family_tree`. One that has ended takes what it did with it, which
    counts as something done."""
    found = stat(rank)
    ticks = moved = 0
    runnable = False
    for pid in (rank, *descendants(rank, children)):
        folder = Path(f"/proc/{pid}")
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
        moved += _bytes(folder)
        runnable = runnable or _any_runnable(folder)
    return Activity(state=found.state if found else "X", runnable=runnable, ticks=ticks, bytes=moved)


def _bytes(folder: Path) -> int:
    try:
        lines = (folder / "io").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))


def _any_runnable(folder: Path) -> bool:
    for thread in folder.glob("task/*/stat"):
        try:
            if thread.read_text().rpartition(")")[2].split()[0] == "R":
                return True
        except OSError:
            continue
    return False
