"""What /proc says about processes, and the two prctl(2) calls that keep a family together. Linux."""

import ctypes
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from dist_train.rundir.process_id import stat

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
KILL_TIMEOUT_S = 5.0
"""For what SIGKILL was sent to; a process that waits in the kernel does not end."""
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl


def family_tree() -> dict[int, list[int]]:
    """The children of every process, zombies included."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        found = stat(int(name)) if name.isdigit() else None
        if found is not None:
            children.setdefault(found.parent, []).append(int(name))
    return children


def descendants(root: int, children: dict[int, list[int]] | None = None) -> list[int]:
    """Ids of all processes below `root`, zombies included; from a `family_tree`, or from one made now."""
    children = family_tree() if children is None else children
    family, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        family += below
        waiting += below
    return family


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for the signal."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(mask >> (number - 1) & 1)


def send(pid: int, number: int, *, group: bool = False) -> None:
    """Sends a signal to a process, or to the process group that it leads; one that has just ended is no error."""
    with suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(pid, number)


def ignore_signals() -> None:
    """Leaves to the supervisor the signals that people and schedulers send. Ranks inherit this, so that none of these
    ends one that has no handler yet."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """For a child before its program: the kernel sends it this signal when its parent ends, however that happens. 0
    takes that back."""
    _PRCTL(PR_SET_PDEATHSIG, number, 0, 0, 0)


def become_subreaper() -> None:
    """From now on, orphans below this process become its children, so that none is lost."""
    _PRCTL(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(
    *, patience: float, spare: Collection[int] = (), sessions: Collection[int] | None = None
) -> list[int]:
    """Ends everything below this process: SIGTERM, after `patience` seconds SIGKILL. Returns what would not end.

    Args:
        spare: processes that stay; what is below them does not.
        sessions: only processes of these are ended; None: of all.
    """
    begun = time.monotonic()
    for pid in living(spare, sessions) if patience > 0 else []:
        send(pid, signal.SIGTERM)
    while left := living(spare, sessions):
        waited = time.monotonic() - begun
        if waited > patience + KILL_TIMEOUT_S:
            return left
        for pid in left if waited >= patience else []:
            send(pid, signal.SIGKILL)
        time.sleep(0.02)
    return []


def living(spare: Collection[int] = (), sessions: Collection[int] | None = None) -> list[int]:
    """What still runs below this process, as for `end_descendants`; its dead children are reaped on the way."""
    family: list[int] = []
    for pid in descendants(os.getpid()):
        found = stat(pid)
        if found is None or pid in spare:
            continue
        if found.state not in "ZX":
            if sessions is None or found.session in sessions:
                family.append(pid)
        elif found.parent == os.getpid():
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return family
