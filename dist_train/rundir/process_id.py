"""One process among all that ever were, and whether it still lives. Linux; standard library only."""

import ctypes
import os
import signal
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Stat:
    """What /proc says about a process.

    Attributes:
        parent: process id of its parent.
        session: id of its session, which is that of the process that began it.
        state: one letter; Z and X are dead.
        started: in clock ticks since boot.
    """

    parent: int
    session: int
    state: str
    started: int


def stat(pid: int) -> Stat | None:
    """None when there is no such process, or it cannot be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    return Stat(parent=int(fields[1]), session=int(fields[3]), state=fields[0], started=int(fields[19]))


@cache
def boot() -> str | None:
    """Where process ids mean the same: this boot of this machine, and this PID namespace. None where Linux hides it."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """Tells a process from any other, on any host, also after its id was given out again.

    Attributes:
        started: in clock ticks since boot.
        boot: the boot and the PID namespace that `pid` belongs to; None in what older versions have written.

    Raises:
        ValueError: when no process has such an id or start. Anybody may have written the file it comes from, and a
            signal to 0 or -1 would reach many processes.
    """

    host: str
    pid: int
    started: int
    boot: str | None = None

    def __post_init__(self) -> None:
        if not (0 < self.pid < 2**31 and self.started >= 0):
            raise ValueError(f"no process: pid {self.pid}, started {self.started}")

    @classmethod
    def myself(cls) -> Self:
        own = stat(os.getpid())
        return cls(host=socket.gethostname(), pid=os.getpid(), started=own.started if own else 0, boot=boot())

    def lives(self) -> bool | None:
        """Whether the process runs; a zombie does not. None where this process cannot tell."""
        is_here = self.host == socket.gethostname() if self.boot is None else self.boot == boot()
        if not is_here:
            return None
        found = stat(self.pid)
        if found is not None:
            return found.started == self.started and found.state not in "ZX"
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return None
        return None  # /proc hides it


def end_with_parent(parent: int) -> None:
    """From now on, the kernel ends this process when its parent does, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)
