"""Processes that an earlier start of this job left on this machine: SLURM loses track of orphans."""

import os
import signal
import time
from pathlib import Path

from ..job import Place
from ..processes import send, stat

_END_TIMEOUT_S = 5.0
_OF_ONE_CLUSTER = (b"SLURM_CLUSTER_NAME", b"SLURM_CONF")
"""Job numbers are unique within a cluster, and a machine may belong to two."""


def end_older_launches(job: Place) -> list[int]:
    """Kills every process of an earlier start of the job, stopped ones included. Returns their ids.

    SLURM restarts a job only when it believes that the last start has ended, so there is nothing to wait for.
    """
    if job.restarts == 0:
        return []
    found = [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_older(int(name), job)]
    for pid in found:
        send(pid, signal.SIGKILL)
    deadline = time.monotonic() + _END_TIMEOUT_S
    while any((seen := stat(pid)) and seen.state not in "ZX" for pid in found) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _is_older(pid: int, job: Place) -> bool:
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False
    variables = dict(line.partition(b"=")[::2] for line in lines)
    restarts = variables.get(b"SLURM_RESTART_COUNT", b"0")
    is_older = restarts.isdigit() and int(restarts) < job.restarts
    is_ours = variables.get(b"SLURM_JOB_ID") == str(job.job_number).encode()
    return is_older and is_ours and all(variables.get(name) == os.environb.get(name) for name in _OF_ONE_CLUSTER)
