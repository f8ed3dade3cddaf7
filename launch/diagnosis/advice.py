"""What there is to do about a failure, where that is known: a line or two."""

import errno
import os
import re
import signal
from pathlib import Path

from dist_train.errors import ExitCode
from dist_train.rundir.records import ErrorRecord

from ..console import ranges
from ..plan.host import Memory
from ..scheduler import kill_hint
from .collectives import sides
from .failures import Failure, calls_that_differ, is_mismatch
from .formatting import short

_SHM = Path("/dev/shm")


def advice(
    cause: Failure, found: list[Failure], memory: Memory | None, out_of_memory: bool, job: str | None = None
) -> list[str]:
    """Lines for the user; empty where the failure speaks for itself."""
    report = cause.report
    message = (report.message if report else "") + (cause.native.said if cause.native else "")
    killed = cause.kind == "signal" and cause.exit_code == -signal.SIGKILL
    if killed or "killed by signal: Killed" in message:
        return _killed(memory, out_of_memory, job)
    if cause.kind == "mismatch" or is_mismatch(message):
        return _mismatch(found)
    if report is not None and report.code == ExitCode.OUT_OF_MEMORY:
        return _out_of_memory(report, memory)
    number = report.errno if report else None
    if number in (errno.EMFILE, errno.ENFILE) or "too many open files" in message.lower():
        most = report.limits.get("nofile") if report else None
        return [
            f"the limit of open files (nofile) is {most}: raise it with `ulimit -n`, or use fewer loader workers; "
            "what opens files and never closes them reaches any limit"
        ]
    if "Bus error" in message or "shared memory" in message or cause.exit_code == -signal.SIGBUS:
        return [f"{_space(_SHM)}: DataLoader workers pass their batches through it. Make it larger "
                "(docker run --shm-size), or use fewer workers or none"]  # fmt: skip
    if number in (errno.ENOSPC, errno.EDQUOT):
        return [f"{_space(_place(report.filename if report else None))}: make room, or write elsewhere"]
    if number == errno.EADDRINUSE or "EADDRINUSE" in message:
        return [_port_taken(message)]
    return []


def _killed(memory: Memory | None, out_of_memory: bool, job: str | None) -> list[str]:
    if out_of_memory:
        peak = f", {size(memory.peak or memory.used)} used at the most" if memory else ""
        limit = f"limit {size(memory.limit)}{' (cgroup)' if memory.is_cgroup else ''}{peak}. " if memory else ""
        return [f"{limit}Fewer or smaller loading processes, a smaller batch, or more memory"]
    used = f": {size(memory.used)} of {size(memory.limit)} used" if memory else ""
    who = f"; {kill_hint(job)}" if job else "; someone sent it"
    return [f"not the OOM killer{used}{who}"]


def _mismatch(found: list[Failure]) -> list[str]:
    what = "the ranks' collectives do not fit together"
    if (differing := calls_that_differ(found)) is None:
        return [
            f"{what}: another shape, another order, or one rank skips one. "
            "TORCH_DISTRIBUTED_DEBUG=DETAIL names the first that differs"
        ]
    number = next(iter(differing.values())).number
    lines = [
        f"  rank{'s' * (len(ranks) > 1)} {ranges(ranks)} called {call.what} "
        f"at {short(call.file)}:{call.line} {call.function}()"
        for ranks, call in sides(differing)
    ]
    return [f"{what}, and collective {number:,} is the first that differs", *lines]


def _out_of_memory(report: ErrorRecord, memory: Memory | None) -> list[str]:
    if report.type == "OutOfMemoryError":
        gpu = report.gpu
        peak = f"peak {size(gpu['peak'])} of {size(gpu['total'])}, {size(gpu['reserved'])} reserved. " if gpu else ""
        return [
            f"{peak}Smaller batches: raise batch.microbatches, or lower the batch per rank; bf16 halves activations"
        ]
    most = report.limits.get("as")
    had = report.limits.get("peak", 0)
    limit = f"address space is limited to {size(most)} (ulimit -v)" if most else ""
    limit = limit or (f"{size(memory.used)} of {size(memory.limit)} used" if memory else "no limit known")
    return [f"{limit}, this rank had {size(had)} at the most. A smaller batch, fewer loader workers, or a higher limit"]


def _place(filename: str | None) -> Path:
    path = Path(filename or ".").absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _space(place: Path) -> str:
    try:
        found = os.statvfs(place)
    except OSError:
        return str(place)
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    return f"{place} has {size(total)}, {size(free)} of it free now"


def _port_taken(message: str) -> str:
    match = re.search(r"port:? (\d+)", message)
    return port_taken(int(match[1]) if match else None)


def port_taken(port: int | None) -> str:
    """With its owner, where that can be seen."""
    owner = _owner(port) if port else None
    return f"port {port or ''} is taken{f' by {owner}' if owner else ''}: choose another, or 0 for a free one"


def _owner(port: int) -> str | None:
    """The process that listens on a port, if it can be seen."""
    nodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                nodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(descriptor) in nodes for descriptor in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:
            continue
    return None


def size(count: int) -> str:
    """`3.1 GB`, `820 MB`, `64 kB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count / 1000:.3g} kB"
