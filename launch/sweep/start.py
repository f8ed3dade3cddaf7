"""What `dist-train sweep` does: begins a sweep, resumes one, or shows its table."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.config import recorded, trust
from dist_train.config.schema import RunConfig
from dist_train.config.stdout import aligned, tell
from dist_train.errors import ExitCode, UserError
from dist_train.rundir.ownership import refuse_owned
from dist_train.rundir.runs import shown_path
from dist_train.rundir.strict_json import to_json

from .. import foreign_files
from ..configs import existing_config, load_trusted, split_config
from ..console import say
from ..plan import host
from ..plan.flags import as_words
from ..slurm import queue, submission
from ..slurm.render import Script, render_script
from . import local, store, table
from .points import Point, as_arguments, draw
from .store import Sweep

Configs = Mapping[str, RunConfig]
"""The configs of the points to run, by name."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """The command line."""

    words: tuple[str, ...]
    """The config and its overrides."""
    over: tuple[str, ...]
    listed: str | None
    jobs: int | None
    nproc_per_node: str | None
    max_restarts: int
    grace: float | None
    resume: str | None
    """The sweep to resume."""
    table: str | None
    """The sweep to show."""
    trust: bool
    slurm: bool
    slurm_overrides: tuple[str, ...]
    follow: bool
    dry_run: bool
    as_json: bool

    @property
    def train_flags(self) -> list[str]:
        """Options of each point's `dist-train train`, besides its run directory and its number of ranks."""
        return as_words({"max_restarts": str(self.max_restarts), "grace": self.grace})


def run_sweep(request: SweepRequest) -> int:
    """Does what was asked for; returns the exit code.

    Raises:
        UserError: when the options contradict each other, or the points cannot be run.
    """
    if request.resume and request.table:
        raise UserError("--resume runs what is missing, --table only looks: give one of them")
    named = "--resume" if request.resume else "--table" if request.table else None
    if named and (request.words or request.over or request.listed):
        raise UserError(f"{named} takes the sweep's own points: leave CONFIG, overrides, --over and --list out")
    if request.table:
        _show(store.read_sweep(Path(request.table)), request)
        return ExitCode.DONE
    if not request.resume:
        return _begin(request)
    sweep = store.read_sweep(Path(request.resume))
    with store.locked(sweep, leads=not request.slurm):
        return _resume(sweep, request)


def _begin(request: SweepRequest) -> int:
    config, base = split_config(request.words)
    path = existing_config(config)
    if not request.over and not request.listed:
        raise UserError("what is to be varied? --over optimizer.lr=0.1,0.3, or --list FILE")
    if recorded.is_recorded(Path(path)):
        load_trusted(path, base, trust=request.trust, job=request.slurm)
    listed = Path(request.listed) if request.listed else None
    points, drawn = draw(path, [*base, *request.slurm_overrides], request.over, listed)
    sweep = store.lay_out(path, points, drawn)
    configs = {point.name: store.grouped(each, sweep) for point, each in zip(points, drawn, strict=True)}
    start = _prepared(sweep, configs, request)
    if start is None:
        return ExitCode.DONE
    store.create(sweep, configs)
    of_points = [power for config in configs.values() for power in trust.powers(config, job=request.slurm)]
    trust.remember([_place(sweep), *of_points])
    say(f"sweep  {sweep.folder}  {len(points)} points")
    with store.locked(sweep, leads=not request.slurm):
        try:
            return start()
        except UserError:  # sbatch refused, so nothing has run
            shutil.rmtree(sweep.folder, ignore_errors=True)
            raise


def _resume(sweep: Sweep, request: SweepRequest) -> int:
    rows = table.read_table(sweep)
    busy = {row.point.name for row in rows if _is_busy(sweep, row)}
    todo = {row.point.name for row in rows if row.state != table.DONE} - busy
    if busy:
        say(f"left alone, since running or in the queue: {', '.join(sorted(busy))}")
    if not todo:
        _show(sweep, request)
        return ExitCode.DONE
    configs = _trusted(sweep, [point for point in sweep.points if point.name in todo], request)
    start = _prepared(sweep, configs, request)
    return ExitCode.DONE if start is None else start()


def _trusted(sweep: Sweep, points: Sequence[Point], request: SweepRequest) -> Configs:
    """The configs of the points to run. The sweep may have come from anybody."""

    def require(asked: list[trust.Power]) -> None:
        trust.require(asked, f"the sweep {shown_path(sweep.folder)}", given=request.trust, note=say)

    if sweep.cwd != Path.cwd():
        require([_place(sweep)])
    for point in points:
        foreign_files.refuse(sweep.run_dir(point), trusted=request.trust)
    found = {point.name: recorded.of_file(sweep.config_of(point), request.slurm_overrides) for point in points}
    asked = [trust.of_recorded(one.alone, one.config, job=request.slurm) for one in found.values()]
    require(list({power.hash: power for powers in asked for power in powers}.values()))
    return {name: one.config for name, one in found.items()}


def _place(sweep: Sweep) -> trust.Power:
    return trust.Power(where=trust.FOLDER, what=str(sweep.cwd))


def _is_busy(sweep: Sweep, row: table.Row) -> bool:
    """Whether the point runs or is queued elsewhere. Where it may run on another host, its lease decides."""
    if row.state != table.RUNNING or row.job is not None:
        return row.state in (table.RUNNING, table.QUEUED)
    try:
        refuse_owned(sweep.run_dir(row.point))
    except UserError:
        return True
    return False


def _prepared(sweep: Sweep, configs: Configs, request: SweepRequest) -> Callable[[], int] | None:
    """Checks all that can be checked beforehand and creates nothing. Returns the function that starts the points; None
    after a dry run, which prints what would be started."""
    points = [point for point in sweep.points if point.name in configs]
    if request.slurm:
        script, runs = _plan_array(sweep, configs, request)
        if not request.dry_run:
            return lambda: _submit(sweep, script, runs, request)
        tell(render_script(script))
        return None
    share = local.divide(configs, request.jobs or 1, request.nproc_per_node, host.look())
    if not request.dry_run:
        return lambda: _run(sweep, points, share, request)
    for point in points:
        tell(f"{point.name}  {' '.join(as_arguments(point.overrides))}")
    say(f"{len(points)} points; nothing was started, nothing was written")
    return None


def _run(sweep: Sweep, points: Sequence[Point], share: local.Share, request: SweepRequest) -> int:
    """Runs the points on this machine, to the end."""
    code = local.run_points(sweep, points, share, request.train_flags)
    _show(sweep, request)
    if code != ExitCode.DONE:
        say(f"to go on with what is not done: dist-train sweep --resume {shown_path(sweep.folder)}")
    return code


def _submit(sweep: Sweep, script: Script, runs: submission.Trainings, request: SweepRequest) -> int:
    """Submits the points; with --follow, waits for the end."""
    submitted = submission.submit(script, runs)
    job = submission.say_queued(script, submitted)
    try:
        if request.follow:
            _follow_tasks(sweep, [task.job for task in submitted])
    except KeyboardInterrupt:
        say(f"\njob {job} goes on. Its table: dist-train sweep --table {shown_path(sweep.folder)}")
        return ExitCode.INTERRUPTED
    if all(row.state == table.DONE for row in _show(sweep, request)):
        return ExitCode.DONE
    if request.follow:
        say(f"to go on with what is not done: dist-train sweep --resume {shown_path(sweep.folder)} --slurm")
        return ExitCode.USER_CODE
    say(f"how it is doing: dist-train sweep --table {shown_path(sweep.folder)}")
    return ExitCode.DONE


def _show(sweep: Sweep, request: SweepRequest) -> list[table.Row]:
    """Writes the present table to stdout and to its files."""
    rows = table.read_table(sweep)
    table.write_table(sweep, rows)
    as_json = to_json(table.as_records(sweep, rows), indent=2)
    tell(as_json if request.as_json else aligned(table.cells(sweep, rows)))
    return rows


# ---------------------------------------------------------------- as tasks of one SLURM array


def _plan_array(sweep: Sweep, configs: Configs, request: SweepRequest) -> tuple[Script, submission.Trainings]:
    """The script, which contains no value of any point, and the trainings of its tasks. Task N is point N, and a
    requeued task returns to its own run directory. Creates nothing.

    Raises:
        UserError: when a point could not start, or is already queued.
    """
    options = (*request.train_flags, *as_words({"nproc_per_node": request.nproc_per_node}))
    runs: submission.Trainings = {
        number: submission.Training(config=configs[point.name], folder=sweep.run_dir(point), options=options)
        for number, point in enumerate(sweep.points)
        if point.name in configs
    }
    first = next(iter(configs.values()))
    return submission.script_of(first, runs, sweep.folder, request.jobs, sweep.cwd), runs


def _follow_tasks(sweep: Sweep, jobs: Sequence[str]) -> None:
    """Returns when no task is queued or running any more; reports every change on the way."""
    told: dict[str, str] = {}
    for _ in queue.until_over(jobs):
        now = {row.point.name: row.state for row in table.read_table(sweep)}
        for name in sorted(now):
            if told.get(name, table.QUEUED) != now[name]:
                say(f"  {name} {now[name]}")
        told = now
