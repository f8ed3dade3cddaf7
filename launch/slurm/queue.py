"""The state of jobs in SLURM's queue. SLURM's programs are called with a list of arguments, never through a shell."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..job import JobStatus

_FINISHED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
_FINISHED |= {"REVOKED", "TIMEOUT"}
"""States that a job does not leave on its own."""
_FIELDS = ("JobArrayID", "State", "Reason", "RestartCnt", "exit_code")
QUERY_S = (1.0, 10.0)
"""Between two queries: rises from the first to the last while nothing changes, to spare the controller."""
_MEANWHILE_S = 0.5
_ANSWER_TIMEOUT_S = 60
"""How long a busy controller may take to answer."""
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")


def look(jobs: Iterable[str]) -> dict[str, JobStatus] | None:
    """The state of `jobs`, from one call of squeue, which forgets a job some minutes after its end.

    None if there is no squeue, or no answer.
    """
    wanted = sorted({job for job in jobs if _JOB.fullmatch(job)})
    if not wanted:
        return {}
    layout = ",".join(f"{field}:120|" for field in _FIELDS)
    words = ["--noheader", "--array", "--states=all", f"--jobs={','.join(wanted)}", f"--Format={layout}"]
    try:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
        done = call("squeue", *words, environment=plain)  # which could restrict it to one partition
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None  # squeue has forgotten all of them
    entries = (_parse(line) for line in done.stdout.splitlines() if line.count("|") >= len(_FIELDS))
    return {entry.job: entry for entry in entries}


def until_over(
    jobs: Sequence[str], meanwhile: Callable[[], None] = lambda: None
) -> Iterator[dict[str, JobStatus] | None]:
    """What `look` says of the jobs, time and again, until all are over.

    Args:
        meanwhile: called several times between two queries.
    """
    over, pause, before = 0, QUERY_S[0], None
    while over < 2:  # a job that is about to be requeued may look finished once
        found = look(jobs)
        over = over + 1 if found is not None and not any(entry.active for entry in found.values()) else 0
        yield found
        pause = QUERY_S[0] if over or found != before else min(1.5 * pause, QUERY_S[1])
        before, wake = found, time.monotonic() + pause
        while over < 2 and time.monotonic() < wake:
            meanwhile()
            time.sleep(_MEANWHILE_S)


def kill_hint(job: str) -> str:
    """Advice when it is not known who sent SIGKILL to a rank of the job."""
    return f"SLURM may have: sacct -j {job} -o State,ExitCode,MaxRSS"


def _parse(line: str) -> JobStatus:
    job, state, reason, restarts, status = (field.strip() for field in line.split("|")[: len(_FIELDS)])
    code = os.waitstatus_to_exitcode(int(status) & 0xFFFF) if status.isdigit() else 0
    return JobStatus(
        job=job,
        state=state,
        active=state not in _FINISHED,
        is_pending=state == "PENDING",
        is_running=state == "RUNNING",
        reason=None if reason in ("None", "(null)", "") else reason,
        restarts=int(restarts) if restarts.isdigit() else 0,
        exit_code=code if code >= 0 else 128 - code,
    )


def call(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs one of SLURM's programs to its end.

    Raises:
        FileNotFoundError: when it is not on PATH.
        subprocess.TimeoutExpired: when the controller does not answer in time.
    """
    return subprocess.run(
        words, capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S, env=environment, errors="replace"
    )
