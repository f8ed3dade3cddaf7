"""Which runs there are, and what became of each."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dist_train.config.changes import differences
from dist_train.config.recorded import read_recorded
from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from dist_train.report.facts import ended_as, newest_step
from dist_train.rundir.codec import read_json, read_record, read_records
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import Best, NodeRecord, RunState, VerdictSummary, read_launches
from dist_train.rundir.runs import is_elsewhere

from .. import scheduler
from ..job import JobStatus, jobs_of


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a few words.

    Attributes:
        name: its folder below the run root.
        state: submitted, starting, running, done, stopped, failed, died or cancelled.
        updated: Unix time in s.
        jobs: ids that SLURM's queue may know.
        queue: what it says of the newest of them.
        began: when its first launch did, Unix time in s.
        seconds: that its launches took together.
        why: it failed.
        changed: key of the config, and its values in the run of the same name before and in this one.
        is_max: whether a higher figure is a better one.
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
    began: float | None = None
    seconds: float | None = None
    why: str = ""
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    is_max: bool = True


def list_runs(root: Path) -> list[RunSummary]:
    """What there is under a run root, the oldest first."""
    return [summary_of(folder, root) for folder in sorted(_runs_below(root, 3), key=_by_name)]


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
    generation, jobs = RunDir(folder).newest_generation(), map(read_json, RunDir(folder).jobs())
    named = [node.folder for node in read_records(NodeRecord, generation.nodes)] if generation else []
    named += [str(job.get("run_dir")) for job in jobs if isinstance(job, dict)]
    return any(is_elsewhere(one, folder) for one in named)


def summary_of(folder: Path, root: Path) -> RunSummary:
    state, copied = RunState.of(folder), is_copy(folder)
    ids = [] if copied else jobs_of(folder)
    status, why = state.status or "starting", ""
    generation = RunDir(folder).newest_generation()
    if status in ("running", "starting") and generation is not None:
        launchers = [] if copied else read_records(NodeRecord, generation.nodes)
        if all(node.lives() is False for node in launchers):  # as far as can be seen from here
            verdicts = [read_record(VerdictSummary, path) for path in generation.verdicts()]
            status = "failed" if any(verdict is None or verdict.outcome == "failed" for verdict in verdicts) else "died"
            why = ended_as(next(iter(verdicts), None)).removeprefix("failed (").removesuffix(")")
    if state == RunState() and generation is None and ids:
        status = "submitted"
    launches, now = read_launches(folder), time.time() if status == "running" else state.updated
    began = [launch.began.unix or now for launch in launches]
    ended = [launch.ended.unix or now if launch.ended else now for launch in launches]
    return RunSummary(
        name=str(folder.relative_to(root)),
        state=status,
        step=None if state.step is None else max(state.step, newest_step(RunDir(folder).metrics)),
        total_steps=state.total_steps,
        best=state.best,
        metrics=state.metrics,
        updated=state.updated or None,
        path=str(folder),
        jobs=ids,
        began=began[0] if launches else None,
        seconds=max(0.0, sum(ended) - sum(began)) if launches else None,
        why=why,
    )


def with_changes(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The same with what differs between the configs of runs of one name, which come in the order of their starts."""
    before: dict[Path, RunConfig] = {}
    found = []
    for run in runs:
        with suppress(UserError):
            config = read_recorded(Path(run.path)).alone
            old = before.get(Path(run.path).parent, config)
            changed = {key: (was, now) for key, was, now in differences(old, config)}
            before[Path(run.path).parent] = config
            run = replace(run, changed=changed, is_max=config.best_is == "max")
        found.append(run)
    return found


def place(run: RunSummary, key: str) -> tuple[Any, ...]:
    """What runs are sorted by: by start, as they come; the longest duration and the best figure first."""
    sign = -1 if run.is_max else 1
    best: tuple[Any, ...] = (0, run.best.metric, sign * run.best.value) if run.best else (1,)
    return {"start": (), "name": (run.name,), "duration": (-(run.seconds or 0.0),), "best": best}[key]


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
