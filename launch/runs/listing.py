"""Which runs there are, and what became of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_train.rundir.codec import read_json, read_record, read_records
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import Best, NodeRecord, RunState, VerdictSummary
from dist_train.rundir.runs import is_elsewhere

from .. import scheduler
from ..scheduler import JobStatus


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a few words.

    Attributes:
        name: its folder below the run root.
        state: submitted, starting, running, done, stopped, failed, died or cancelled.
        updated: Unix time in s.
        jobs: ids that SLURM's queue may know.
        queue: what it says of the newest of them.
    """

    name: str
    state: str
    step: int | None
    total_steps: int | None
    best: Best | None
    metrics: dict[str, Any] | None
    updated: float | None
    path: str
    jobs: list[str]
    queue: JobStatus | None = None


def list_runs(root: Path) -> list[RunSummary]:
    """What there is under a run root, the oldest first."""
    return [describe(folder, root) for folder in sorted(_runs_below(root, 3), key=_by_name)]


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """ROOT/RUN, ROOT/NAME/RUN, and the tasks of an array, ROOT/NAME/RUN/TASK; nothing inside of a run."""
    for path in folder.glob("*"):
        if path.is_dir() and not path.is_symlink():
            if RunDir(path).is_run():
                yield path
            elif depth > 1:
                yield from _runs_below(path, depth - 1)


def _by_name(folder: Path) -> tuple[str, int]:
    """By the time in the name, the tasks of an array by their number."""
    name = folder.name
    return (folder.parent.name, int(name)) if name.isdecimal() else (name, -1)


def is_copy(folder: Path) -> bool:
    """Whether it is a copy of a run that is still there: the launchers and the job that it names are that one's."""
    generation, job = RunDir(folder).newest_generation(), read_json(RunDir(folder).job)
    named = [node.folder for node in read_records(NodeRecord, generation.nodes)] if generation else []
    named += [str(job.get("run_dir"))] if isinstance(job, dict) else []
    return any(is_elsewhere(one, folder) for one in named)


def describe(folder: Path, root: Path) -> RunSummary:
    state, copied = RunState.of(folder), is_copy(folder)
    ids = [] if copied else scheduler.of_run(folder)
    status = state.status or "starting"
    generation = RunDir(folder).newest_generation()
    if status in ("running", "starting") and generation is not None:
        launchers = [] if copied else read_records(NodeRecord, generation.nodes)
        if all(node.lives() is False for node in launchers):  # as far as can be seen from here
            verdicts = [read_record(VerdictSummary, path) for path in generation.verdicts()]
            status = "failed" if any(verdict is None or verdict.outcome == "failed" for verdict in verdicts) else "died"
    if state == RunState() and generation is None and ids:
        status = "submitted"
    return RunSummary(
        name=str(folder.relative_to(root)),
        state=status,
        step=state.step,
        total_steps=state.total_steps,
        best=state.best,
        metrics=state.metrics,
        updated=state.updated or None,
        path=str(folder),
        jobs=ids,
    )


def with_queue(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The same with what SLURM says of each run's newest job. Queries SLURM once."""
    jobs = scheduler.look(job for run in runs for job in run.jobs)
    found = []
    for run in runs:
        known = [jobs[job] for job in run.jobs if job in jobs] if jobs else []
        newest = next((job for job in known if job.active), known[-1] if known else None)
        is_gone = jobs is not None and bool(run.jobs) and not (newest and newest.active)
        state = run.state
        if is_gone and state in ("submitted", "running", "starting"):
            state = "cancelled" if state == "submitted" else "died"
        found.append(replace(run, state=state, queue=newest))
    return found
