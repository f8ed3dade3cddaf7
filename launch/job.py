"""Jobs of a scheduler, as everybody sees them; which scheduler that is, scheduler.py knows."""

from dataclasses import dataclass
from pathlib import Path

from dist_train.rundir.codec import read_record, read_records
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import NodeRecord


@dataclass(frozen=True, kw_only=True)
class Place:
    """Our place in a job, or in a step of it."""

    scheduler: str
    """Its name, as the config's section has it."""
    job: str
    """The job's id; `ARRAYJOB_TASK` in an array."""
    job_number: int
    """Unique to the job; each task of an array has its own."""
    nodes: int
    node: int
    head: str
    """Host name of the first node."""
    restarts: int
    """How often the job has been requeued."""
    cpus: int | None
    """Cores that the scheduler gave to us, if it says so."""
    hosts: tuple[str, ...] = ()
    """The nodes' names, in order."""
    step: str = "batch"
    """The job's step, unique within each start of the job."""
    interactive: bool = False
    """A person typed the command in the allocation's shell: no requeue repeats it, and another command may follow."""

    @property
    def run_name(self) -> str:
        """Name of the run directory on all nodes of the job; a requeued job returns to it."""
        return f"{self.scheduler}-{self.job}"


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the queue says about a job."""

    job: str
    """`12`, or `12_3`: task 3 of array 12."""
    state: str
    """In the scheduler's own word: `PENDING`, `RUNNING`, `COMPLETED`, …"""
    active: bool
    """It has not ended, or comes back."""
    is_pending: bool
    is_running: bool
    reason: str | None
    """Why it waits, or why it ended."""
    restarts: int
    """How often it has been put back into the queue."""
    exit_code: int
    """Of its script; 128 + N if signal N ended it."""

    def __str__(self) -> str:
        """`PENDING (Priority), requeued 2×`."""
        why = f" ({self.reason})" if self.reason and self.is_pending else ""
        return f"{self.state}{why}" + (f", requeued {self.restarts}×" if self.restarts else "")


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """A job as it was submitted."""

    job: str
    """As in JobStatus."""
    run_dir: str
    log: str
    script: str
    submitted: float
    """Unix time in s."""


def jobs_of(run_dir: Path) -> list[str]:
    """Ids of the jobs that may be training in it now: those last submitted and those of the newest launchers."""
    submitted = [read_record(SubmittedJob, path) for path in RunDir(run_dir).jobs()]
    ids = [one.job for one in submitted if one] + [node.job for node in newest_launchers(run_dir) if node.job]
    return list(dict.fromkeys(ids))


def newest_launchers(run_dir: Path) -> list[NodeRecord]:
    """The launcher of each node, in the newest generation."""
    generation = RunDir(run_dir).newest_generation()
    return read_records(NodeRecord, generation.nodes) if generation else []
