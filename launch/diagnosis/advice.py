"""What there is to do about a failure, where that is known: a line or two."""

import errno
import os
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from dist_train.errors import ExitCode
from dist_train.memory import Memory
from dist_train.report.words import size
from dist_train.rundir.records import ErrorRecord

from ..scheduler import kill_hint
from .collectives import sides
from .failures import Failure, calls_that_differ, is_mismatch
from .formatting import named, short

_SHM = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class FailureContext:
    """What is around the failure."""

    logs: Path
    checkpoint: str | None
    """Name of the newest one."""
    out_of_memory: bool
    """The kernel has killed for want of memory since the generation began."""
    here: str
    """This host."""
    memory: Memory | None = None
    job: str | None = None
    """Of the scheduler."""
    smaller: str | None = None
    """Of a training: how its microbatches get smaller."""


def advice(cause: Failure, found: list[Failure], context: FailureContext) -> list[str]:
    """Lines for the user; empty where the failure speaks for itself."""
    report = cause.report
    message = cause.message
    was_killed = cause.kind == "signal" and cause.exit_code == -signal.SIGKILL
    if was_killed or "killed by signal: Killed" in message:
        return [killed(context)]
    if cause.kind == "mismatch" or is_mismatch(message):
        return _mismatch(found)
    if report is not None and report.code == ExitCode.OUT_OF_MEMORY:
        return [_out_of_memory(report, context)]
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
        path = Path((report.filename if report else "") or ".").absolute()
        place = next(folder for folder in (path, *path.parents) if folder.exists())
        return [f"{_space(place)}: make room, or write elsewhere"]
    if number == errno.EADDRINUSE or "EADDRINUSE" in message:
        match = re.search(r"port:? (\d+)", message)
        return [port_taken(int(match[1]) if match else None)]
    return []


def killed(context: FailureContext) -> str:
    """What is known of a SIGKILL that nobody of ours has sent."""
    memory = context.memory
    if context.out_of_memory:
        peak = f", {size(memory.peak or memory.used)} used at the most" if memory else ""
        limit = f"limit {size(memory.limit)}{' (cgroup)' if memory.is_cgroup else ''}{peak}. " if memory else ""
        return f"{limit}{context.smaller or 'A smaller batch'}, fewer or smaller loading processes, or more memory"
    used = f": {size(memory.used)} of {size(memory.limit)} used" if memory else ""
    return f"not the OOM killer{used}; {kill_hint(context.job) if context.job else 'someone sent it'}"


def _mismatch(found: list[Failure]) -> list[str]:
    what = "the ranks' collectives do not fit together"
    if (differing := calls_that_differ(found)) is None:
        return [
            f"{what}: another shape, another order, or one rank skips one. "
            "TORCH_DISTRIBUTED_DEBUG=DETAIL names the first that differs"
        ]
    number = next(iter(differing.values())).number
    lines = [
        f"  {named(ranks)} called {call.what} at {short(call.file)}:{call.line} {call.function}()"
        for ranks, call in sides(differing)
    ]
    return [f"{what}, and collective {number:,} is the first that differs", *lines]


def _out_of_memory(report: ErrorRecord, context: FailureContext) -> str:
    memory = context.memory
    if report.type == "OutOfMemoryError":
        gpu = report.gpu
        peak = f"peak {size(gpu['peak'])} of {size(gpu['total'])}, {size(gpu['reserved'])} reserved. " if gpu else ""
        by_hand = "Smaller batches: raise batch.microbatches, or lower the batch per rank"
        return f"{peak}{context.smaller or by_hand}; bf16 halves activations"
    limit = f"{size(memory.used)} of {size(memory.limit)} used" if memory else "no limit known"
    if most := report.limits.get("as"):
        limit = f"address space is limited to {size(most)} (ulimit -v)"
    had = size(report.limits.get("peak", 0))
    smaller = context.smaller or "A smaller batch"
    return f"{limit}, this rank had {had} at the most. {smaller}, fewer loader workers, or a higher limit"


def _space(place: Path) -> str:
    try:
        total, _, free = shutil.disk_usage(place)
    except OSError:
        return str(place)
    return f"{place} has {size(total)}, {size(free)} of it free now"


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
