"""SLURM's queue, by its own programs: each called with a list of words, never through a shell."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.errors import ExitCode, UserError

FINISHED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
"""States that a job does not leave by itself."""
_FIELDS = ("JobArrayID", "State", "Reason", "RestartCnt", "exit_code")
_PATIENCE = 60
"""Seconds that a busy controller may take to answer."""
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")
_OTHER_NAMES = {"TIME": "TIMELIMIT", "ARRAY": "ARRAY_INX", "MEM": "MEM_PER_NODE"}
"""Of options whose variable for sbatch is called otherwise."""
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What squeue says of a job."""

    job: str
    """`12`, or `12_3`: task 3 of array 12."""
    state: str
    """`PENDING`, `RUNNING`, `COMPLETED`, …"""
    reason: str | None
    """Why it waits, or why it ended."""
    restarts: int
    """How often it has been put back into the queue."""
    exit_code: int
    """Of its script; 128 + N when signal N ended it."""

    @property
    def active(self) -> bool:
        return self.state not in FINISHED

    def __str__(self) -> str:
        """`PENDING (Priority), requeued 2×`."""
        why = f" ({self.reason})" if self.reason and self.state == "PENDING" else ""
        return f"{self.state}{why}" + (f", requeued {self.restarts}×" if self.restarts else "")


def submit(script: Path, options: Iterable[str] = ()) -> str:
    """Puts a script into the queue and returns the job's id.

    Args:
        options: those that the script sets, such as `--time`: an SBATCH_TIMELIMIT in the environment must not beat it.

    Raises:
        UserError: when there is no sbatch, or it refuses, with what it says.
    """
    try:
        done = _call("sbatch", "--parsable", str(script), environment=environment_for(options))
    except FileNotFoundError:
        raise UserError("no sbatch in PATH: call this where jobs are submitted, or see it with --dry-run") from None
    match = re.match(r"([0-9]+)(;\S*)?$", done.stdout.strip())
    if done.returncode or match is None:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise UserError(f"sbatch refuses: {said[-1].removeprefix('sbatch: error: ')}")
    return match[1]


def environment_for(options: Iterable[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For sbatch: without the variables of a job that we are in, and those that would beat `options`."""
    names = (option.removeprefix("--").replace("-", "_").upper() for option in options)
    beaten = {"SBATCH_WAIT", "SBATCH_NO_REQUEUE", *(f"SBATCH_{_OTHER_NAMES.get(name, name)}" for name in names)}
    inside = "SLURM_JOB_ID" in environ
    return {
        name: value
        for name, value in environ.items()
        if name not in beaten and not (inside and name.startswith("SLURM_") and name not in _KEPT)
    }


def look(jobs: Iterable[str]) -> dict[str, Entry] | None:
    """What the queue says of `jobs`, in one call. A job that ended some minutes ago is not in it.

    None where there is no squeue, or no answer.
    """
    wanted = sorted({job for job in jobs if _JOB.fullmatch(job)})
    if not wanted:
        return {}
    layout = ",".join(f"{field}:120|" for field in _FIELDS)
    words = ["--noheader", "--array", "--states=all", f"--jobs={','.join(wanted)}", f"--Format={layout}"]
    try:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
        done = _call("squeue", *words, environment=plain)  # else it may show one partition's jobs alone
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None  # all of them have left it
    entries = (_entry(line) for line in done.stdout.splitlines() if line.count("|") >= len(_FIELDS))
    return {entry.job: entry for entry in entries}


def _entry(line: str) -> Entry:
    job, state, reason, restarts, status = (field.strip() for field in line.split("|")[: len(_FIELDS)])
    code = os.waitstatus_to_exitcode(int(status) & 0xFFFF) if status.isdigit() else 0
    return Entry(
        job=job,
        state=state,
        reason=None if reason in ("None", "(null)", "") else reason,
        restarts=int(restarts) if restarts.isdigit() else 0,
        exit_code=code if code >= 0 else 128 - code,
    )


def never_requeue(jobs: Sequence[str]) -> None:
    """From now on, neither SLURM nor the jobs' own scripts put them back into the queue.

    Raises:
        UserError: when SLURM refuses.
    """
    _ask("scontrol", "update", f"JobId={','.join(jobs)}", "Requeue=0")


def cancel_pending(jobs: Sequence[str]) -> None:
    """Takes those out of the queue that have not begun."""
    _ask("scancel", "--state=PENDING", *jobs)


def cancel(job: str) -> None:
    """Ends it: SIGTERM, and SIGKILL after the cluster's KillWait."""
    _ask("scancel", job)


def interrupt(target: str, *, batch: bool = False) -> None:
    """Ctrl-C for the processes of a step (`12.0`), or of a job's batch script: saved, and no reason to requeue."""
    _ask("scancel", "--signal=INT", *["--full"] * batch, target)


def _ask(*words: str) -> None:
    try:
        done = _call(*words)
    except FileNotFoundError:
        raise UserError(f"no {words[0]} in PATH: call this where jobs are submitted") from None
    gone = ("Invalid job id", "already completing or completed", "already finished", "Job/step already")
    trouble = [line for line in done.stderr.splitlines() if line.strip() and not any(word in line for word in gone)]
    if done.returncode and trouble:
        raise UserError(f"{words[0]} refuses: {trouble[0]}", ExitCode.CONFIG)


def _call(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE, env=environment, errors="replace")
