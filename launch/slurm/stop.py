"""Ends jobs after a save, with SLURM's own programs."""

from collections.abc import Sequence

from dist_train.errors import UserError
from dist_train.rundir.records import NodeRecord

from ..job import JobStatus
from .queue import call

_ALREADY_OVER = ("Invalid job id", "already completing or completed", "already finished", "Job/step already")


def keep_out(jobs: Sequence[str]) -> None:
    """Removes pending jobs from the queue, and prevents SLURM and the jobs' own scripts from requeuing any of them.

    Raises:
        UserError: when SLURM refuses.
    """
    _ask("scontrol", "update", f"JobId={','.join(jobs)}", "Requeue=0")
    _ask("scancel", "--state=PENDING", *jobs)


def interrupt(job: JobStatus, launchers: Sequence[NodeRecord]) -> None:
    """Interrupts the launchers of a running job, which save and stop. A job without launchers is cancelled.

    Args:
        launchers: of the run's newest generation.

    Raises:
        UserError: when SLURM refuses.
    """
    present = [one for one in launchers if one.job == job.job and one.restarts == job.restarts]
    step = next((one.step for one in present if one.step), None)
    if step:
        _ask("scancel", "--signal=INT", step)
    elif present:  # started by a batch script of one node, without srun
        _ask("scancel", "--signal=INT", "--full", job.job)
    else:
        _ask("scancel", job.job)


def _ask(*words: str) -> None:
    try:
        done = call(*words)
    except FileNotFoundError:
        raise UserError(f"no {words[0]} in PATH: call this where jobs are submitted") from None
    lines = (line for line in done.stderr.splitlines() if line.strip())
    trouble = [line for line in lines if not any(text in line for text in _ALREADY_OVER)]
    if done.returncode and trouble:
        raise UserError(f"{words[0]} refuses: {trouble[0]}")
