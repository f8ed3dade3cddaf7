"""What a run directory knows of the jobs that trained in it: slurm/job.json, and what each launcher left."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_train.rundir.reading import numbered
from dist_train.rundir.records import is_process, read_all, read_json, write_json

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


def write_submitted(*, job: str, run_dir: Path, log: Path, script: Path) -> SubmittedJob:
    """Leaves it in slurm/job.json of the run directory, which is made if need be."""
    made = SubmittedJob(job=job, run_dir=str(run_dir), log=str(log), script=str(script), submitted=time.time())
    (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(run_dir / FOLDER / "job.json", asdict(made))
    return made


def read_submitted(run_dir: Path) -> SubmittedJob | None:
    """The job that the run was last submitted as by `dist-train slurm`."""
    found = read_json(run_dir / FOLDER / "job.json")
    try:
        return SubmittedJob(**found)
    except TypeError:
        return None


def of_run(run_dir: Path) -> list[str]:
    """Ids of the jobs that may be training in it now: its last submission, and that of its newest launchers."""
    submitted = read_submitted(run_dir)
    ids = [submitted.job] if submitted else []
    ids += [str(node["job"]) for node in newest_launchers(run_dir) if node.get("job")]
    return list(dict.fromkeys(ids))


def newest_launchers(run_dir: Path) -> list[dict[str, Any]]:
    """Process, start and host of the launcher of each node, in the newest generation."""
    generations = numbered(run_dir / "generations")
    found = read_all(generations[-1] / "nodes") if generations else []
    return [facts for facts in found if is_process(facts)]
