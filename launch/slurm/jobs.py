"""What a run directory knows about its jobs: slurm/job.json, and the record of each launcher."""

from dataclasses import dataclass
from pathlib import Path

from dist_train.rundir.codec import read_record, read_records
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import NodeRecord

FOLDER = "slurm"
"""In the run directory: job.sbatch, config.yaml, job.json, and the log."""
SCRIPT, CONFIG = "job.sbatch", "config.yaml"


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """A job as it was submitted."""

    job: str
    """`12`, or `12_3`: task 3 of array 12."""
    run_dir: str
    log: str
    script: str
    submitted: float
    """Unix time in s."""


def of_run(run_dir: Path) -> list[str]:
    """Ids of the jobs that may be training in it now: the last one submitted and those of the newest launchers."""
    submitted = read_record(SubmittedJob, RunDir(run_dir).job)
    ids = [submitted.job] if submitted else []
    ids += [node.job for node in newest_launchers(run_dir) if node.job]
    return list(dict.fromkeys(ids))


def newest_launchers(run_dir: Path) -> list[NodeRecord]:
    """The launcher of each node, in the newest generation."""
    generation = RunDir(run_dir).newest_generation()
    return read_records(NodeRecord, generation.nodes) if generation else []
