"""A node's launcher holds the run directory while it runs: one launch at a time, also where no rank takes a lease."""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import TextIO

from dist_train.errors import DiskError, ExitCode, UserError
from dist_train.rundir.layout import RunDir
from dist_train.rundir.process_id import ProcessId

from ..console import mark, say
from ..plan import LaunchPlan


@contextlib.contextmanager
def owning(plan: LaunchPlan) -> Iterator[None]:
    """Holds the run directory for this node; the kernel lets go of it however this process ends.

    Raises:
        UserError: when another live supervisor holds it (exit code 3), or it cannot be opened.
    """
    path = RunDir(plan.folder).lock(plan.node)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:  # a link is never followed: what it leads to would be emptied
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise DiskError(f"cannot open {path}: {reason}") from None
    with os.fdopen(descriptor, "a+") as lock:
        if _takes(lock, plan):
            me, job = ProcessId.myself(), plan.place
            owner = f"process {me.pid} on {me.host}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            owner += json.dumps({"job": job.job, "restarts": job.restarts} if job else {})
            with contextlib.suppress(OSError):  # a full disk: it is held all the same, and only its owner is unknown
                os.ftruncate(descriptor, 0)
                os.write(descriptor, owner.encode())
        yield


def _takes(lock: TextIO, plan: LaunchPlan) -> bool:
    """Whether the lock is ours now; False where another launcher of this start has it, or the disk has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner, _, written = lock.read().strip().partition("\n")
        if plan.node is None:  # several nodes of one start may share a host
            return False
        if not _is_older_launch(written, plan):
            raise UserError(f"{plan.folder} belongs to a live run: {owner}", ExitCode.OWNED) from None
    except OSError as error:
        other = "rank 0's lease alone keeps" if plan.is_training else "nothing keeps"
        say(f"{mark('!', 'yellow')} {plan.folder}: no locks there ({error.strerror}): {other} a second launch out")
        return False
    return True


def _is_older_launch(written: str, plan: LaunchPlan) -> bool:
    """Whether the owner is an earlier start of the same job, which SLURM takes for ended. A launcher that is frozen on
    a node out of reach still has its lock. If it ever wakes up, the checkpoints' fence keeps it out."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        facts = json.loads(written)
        if plan.place is not None and facts["job"] == plan.place.job:
            return int(facts["restarts"]) < plan.place.restarts
    return False
