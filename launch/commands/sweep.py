"""`dist-train sweep`."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dist_train.config.stdout import aligned, tell
from dist_train.errors import ExitCode, UserError
from launch.commands.common import (
    existing_config,
    json_option,
    launch_command,
    load_trusted,
    split_config,
    trust_option,
)
from launch.commands.slurm import KEYS, override
from launch.console import mark, say

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig
    from dist_train.config.trust import Power
    from launch.sweep.local import Share
    from launch.sweep.points import Point
    from launch.sweep.store import Sweep
    from launch.sweep.table import Row

    Configs = Mapping[str, RunConfig]
    """The configs of the points to run, by name."""

EPILOG = """\b
Values:
  --over optimizer.lr=0.1,0.3     one point each, read as overrides are
  --over seed=0..3                0, 1, 2, 3
  --over model=mlp,cnn --over …   every combination
  --list points.yaml              a list of mappings: - {optimizer.lr: 0.1, seed: 1}
  --list points.txt               one line of overrides a point: optimizer.lr=0.1 seed=1

\b
Each point is a run of its own in RUN_ROOT/NAME/sweep-<UTC time>-<4 characters>/, beside table.csv and table.json.
Ctrl-C, SIGTERM: all running points save and stop; a second one ends everything at once. A sweep in SLURM's queue is
left alone; dist-train stop SWEEP ends that."""
SLURM_KEYS = tuple(name.replace("-", "_") for name in KEYS)


def _slurm_keys(command: Callable[..., Any]) -> Callable[..., Any]:
    for name in reversed(KEYS):
        command = click.option(f"--{name}", metavar="VALUE", help="With --slurm, as of dist-train slurm.")(command)
    return command


@launch_command(epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[CONFIG] [a.b=c]...")
@click.option("--over", multiple=True, metavar="KEY=V,V,...", help="What is varied; see below.")
@click.option("--list", "listed", type=click.Path(path_type=Path), help="A file of points; see below.")
@click.option("--jobs", type=click.IntRange(1), help="Points at once. Here: 1, or equal shares of cores or GPUs.")
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks of each point. auto: all of its share.")
@click.option("--max-restarts", type=click.IntRange(0), default=0, help="As of train, for each point.")
@click.option("--grace", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="As of train.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="SWEEP", help="Run what is missing or not done.")
@click.option("--table", type=click.Path(path_type=Path), metavar="SWEEP", help="Only its table. Starts nothing.")
@trust_option
@click.option("--slurm", is_flag=True, help="As one SLURM array, a task for each point; --jobs of them at once.")
@_slurm_keys
@click.option("--follow", is_flag=True, help="With --slurm: wait for the end, then the table. Ctrl-C leaves the jobs.")
@click.option("--dry-run", is_flag=True, help="Print the points, or SLURM's script. Starts and writes nothing.")
@json_option("The table as one JSON object on stdout.")
def command(words: tuple[str, ...], **options: Any) -> None:
    """Train CONFIG once for every combination of some values, and rank the results.

    All points are checked before the first one starts. The table is on stdout, best first by eval.best.
    """
    _check(words, options)
    from launch.sweep import store

    if options["table"]:
        _show(store.read_sweep(options["table"]), options)
        sys.exit(ExitCode.DONE)
    if not options["resume"]:
        sys.exit(_begin(words, options))
    sweep = store.read_sweep(options["resume"])
    with store.locked(sweep, leads=not options["slurm"]):
        sys.exit(_go_on(sweep, options))


def _check(words: Sequence[str], options: Mapping[str, Any]) -> None:
    if options["resume"] and options["table"]:
        raise UserError("--resume runs what is missing, --table only looks: give one of them")
    named = "--resume" if options["resume"] else "--table" if options["table"] else None
    if named and (words or options["over"] or options["listed"]):
        raise UserError(f"{named} takes the sweep's own points: leave CONFIG, overrides, --over and --list out")
    for flag in ("follow", *SLURM_KEYS):
        if options[flag] and not options["slurm"]:
            raise UserError(f"--{flag.replace('_', '-')} is for a sweep in SLURM's queue: add --slurm")


def _begin(words: tuple[str, ...], options: Mapping[str, Any]) -> int:
    from dist_train.config import recorded
    from launch.sweep import store
    from launch.sweep.points import draw

    config, base = split_config(words)
    path = existing_config(config)
    if not options["over"] and not options["listed"]:
        raise UserError("what is to be varied? --over optimizer.lr=0.1,0.3, or --list FILE")
    if recorded.is_recorded(Path(path)):
        load_trusted(path, base, trust=options["trust"], job=options["slurm"])
    points, drawn = draw(path, [*base, *_slurm_overrides(options)], options["over"], options["listed"])
    sweep = store.lay_out(path, points, drawn)
    configs = {point.name: store.grouped(each, sweep) for point, each in zip(points, drawn, strict=True)}
    start = _prepared(sweep, configs, options)
    if options["dry_run"]:
        return _print_plan(sweep, configs, options)
    store.create(sweep, configs)
    _remember(sweep, configs, options)
    say(f"sweep  {sweep.folder}  {len(points)} points")
    with store.locked(sweep, leads=not options["slurm"]):
        try:
            return start()
        except UserError:  # sbatch refused, so nothing has run
            store.remove_unstarted(sweep)
            raise


def _remember(sweep: "Sweep", configs: "Configs", options: Mapping[str, Any]) -> None:
    """Records that the user trusts the sweep, so that it can be resumed."""
    from dist_train.config import trust

    of_points = [power for config in configs.values() for power in trust.powers(config, job=options["slurm"])]
    trust.remember([_place(sweep), *of_points])


def _go_on(sweep: "Sweep", options: Mapping[str, Any]) -> int:
    from launch.sweep import table

    rows = table.read_table(sweep)
    busy = {row.point.name for row in rows if _is_busy(sweep, row)}
    todo = {row.point.name for row in rows if row.state != table.DONE} - busy
    if busy:
        say(f"left alone, since running or in the queue: {', '.join(sorted(busy))}")
    if not todo:
        _show(sweep, options)
        return ExitCode.DONE
    overrides = _slurm_overrides(options)
    configs = _trusted(sweep, [point for point in sweep.points if point.name in todo], overrides, options)
    if options["dry_run"]:
        return _print_plan(sweep, configs, options)
    return _prepared(sweep, configs, options)()


def _trusted(sweep: "Sweep", points: "Sequence[Point]", overrides: list[str], options: Mapping[str, Any]) -> "Configs":
    """The configs of the points to run. The sweep may have come from anybody."""
    from dist_train.config import recorded, trust
    from launch.plan import foreign_files

    def let_through(asked: list[trust.Power]) -> None:
        trust.require(asked, f"the sweep {as_typed(sweep.folder)}", given=options["trust"], note=say)

    if sweep.cwd != Path.cwd():
        let_through([_place(sweep)])
    for point in points:
        foreign_files.refuse(sweep.run_dir(point), trusted=options["trust"])
    found = {point.name: recorded.of_file(sweep.config_of(point), overrides) for point in points}
    asked = [trust.of_recorded(one.alone, one.config, job=options["slurm"]) for one in found.values()]
    let_through(list({power.hash: power for powers in asked for power in powers}.values()))
    return {name: one.config for name, one in found.items()}


def _place(sweep: "Sweep") -> "Power":
    from dist_train.config import trust

    return trust.Power(where=trust.FOLDER, what=str(sweep.cwd))


def _is_busy(sweep: "Sweep", row: "Row") -> bool:
    """Whether the point runs or is queued elsewhere. Where it may run on another host, its lease decides."""
    from dist_train.rundir.ownership import refuse_owned
    from launch.sweep import table

    if row.state == table.RUNNING and row.job is None:
        try:
            refuse_owned(sweep.run_dir(row.point))
        except UserError:
            return True
        return False
    return row.state in (table.RUNNING, table.QUEUED)


def _prepared(sweep: "Sweep", configs: "Configs", options: Mapping[str, Any]) -> Callable[[], int]:
    """Checks all that can be checked beforehand and creates nothing. Returns the function that starts the points."""
    if not options["slurm"]:
        from launch.plan import host
        from launch.sweep import local

        share = local.divide(configs, options["jobs"] or 1, options["nproc_per_node"], host.look())
        return lambda: _run(sweep, configs, share, options)
    script, runs = _array(sweep, configs, options)
    return lambda: _submit(sweep, script, runs, options)


def _array(sweep: "Sweep", configs: "Configs", options: Mapping[str, Any]) -> Any:
    from launch.sweep import array

    ranks = ["--nproc-per-node", options["nproc_per_node"]] if options["nproc_per_node"] else []
    return array.plan_array(sweep, configs, options["jobs"], [*train_flags(options), *ranks])


def _run(sweep: "Sweep", configs: "Configs", share: "Share", options: Mapping[str, Any]) -> int:
    """Runs the points on this machine, to the end."""
    from launch.sweep import local

    points = [point for point in sweep.points if point.name in configs]
    code = local.run_points(sweep, points, share, train_flags(options))
    _show(sweep, options)
    if code != ExitCode.DONE:
        say(f"to go on with what is not done: dist-train sweep --resume {as_typed(sweep.folder)}")
    return code


def _submit(sweep: "Sweep", script: Any, runs: Any, options: Mapping[str, Any]) -> int:
    """Submits the points; with --follow, waits for the end."""
    from launch.slurm import submission
    from launch.sweep import array, table

    records = submission.submit(script, runs)
    job = records[0].job.partition("_")[0]
    say(f"{mark('✓', 'green')} job {job} is in the queue: {len(records):,} task{'s' * (len(records) > 1)}")
    say(f"  logs  {script.logs}/{job}_TASK.log")
    try:
        if options["follow"]:
            array.follow_tasks(sweep, [record.job for record in records])
    except KeyboardInterrupt:
        say(f"\njob {job} goes on. Its table: dist-train sweep --table {as_typed(sweep.folder)}")
        return ExitCode.INTERRUPTED
    rows = _show(sweep, options)
    if all(row.state == table.DONE for row in rows):
        return ExitCode.DONE
    flag = "--resume" if options["follow"] else "--table"
    doing = "to go on with what is not done" if options["follow"] else "how it is doing"
    say(f"{doing}: dist-train sweep {flag} {as_typed(sweep.folder)}{' --slurm' * options['follow']}")
    return ExitCode.USER_CODE if options["follow"] else ExitCode.DONE


def train_flags(options: Mapping[str, Any]) -> list[str]:
    """Options of each point's `dist-train train`, besides its run directory and its number of ranks."""
    grace = ["--grace", f"{options['grace']:g}"] if options["grace"] else []
    return ["--max-restarts", str(options["max_restarts"]), *grace]


def _slurm_overrides(options: Mapping[str, Any]) -> list[str]:
    return [override(key, options[key]) for key in SLURM_KEYS if options[key] is not None]


def _print_plan(sweep: "Sweep", configs: "Configs", options: Mapping[str, Any]) -> int:
    if options["slurm"]:
        from launch.slurm.render import render

        tell(render(_array(sweep, configs, options)[0]))
        return ExitCode.DONE
    from launch.sweep.points import as_arguments

    for point in sweep.points:
        if point.name in configs:
            tell(f"{point.name}  {' '.join(as_arguments(point.overrides))}")
    say(f"{len(configs)} points; nothing was started, nothing was written")
    return ExitCode.DONE


def as_typed(folder: Path) -> str:
    """The folder as one would type it."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def _show(sweep: "Sweep", options: Mapping[str, Any]) -> "list[Row]":
    """Writes the present table to stdout and to its files."""
    from dist_train.rundir.strict_json import to_json
    from launch.sweep import table

    rows = table.read_table(sweep)
    table.write_table(sweep, rows)
    records = table.as_records(sweep, rows)
    as_json = to_json(records, indent=2) + "\n"
    tell(as_json if options["as_json"] else aligned(table.cells(sweep, rows)))
    return rows
