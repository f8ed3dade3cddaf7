"""`dist-train sweep`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dist_train.config.errors import ExitCode, UserError
from launch.commands.common import (
    DASHES_AND_UNDERSCORES,
    OverridesLast,
    become,
    existing_config,
    json_option,
    load,
    split_config,
)
from launch.console import say

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig
    from launch.sweep.local import Share
    from launch.sweep.points import Point
    from launch.sweep.store import Sweep

EPILOG = """\b
Values:
  --over optimizer.lr=0.1,0.3     one point each, read as overrides are
  --over seed=0..3                0, 1, 2, 3
  --over model=mlp,cnn --over …   every combination
  --list points.yaml              a list of mappings: - {optimizer.lr: 0.1, seed: 1}
  --list points.txt               one line of overrides a point: optimizer.lr=0.1 seed=1

\b
Each point is a run of its own in RUN_ROOT/NAME/sweep-<UTC time>-<4 characters>/, beside table.csv and table.json.
Ctrl-C, SIGTERM: all running points save and stop; a second one ends everything at once."""


@click.command(cls=OverridesLast, context_settings=DASHES_AND_UNDERSCORES, epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[CONFIG] [a.b=c]...")
@click.option("--over", multiple=True, metavar="KEY=V,V,...", help="What is varied; see below.")
@click.option("--list", "listed", type=click.Path(path_type=Path), help="A file of points; see below.")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Points at once, on equal shares of cores or GPUs.")
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks of each point. auto: all of its share.")
@click.option("--max-restarts", type=click.IntRange(0), default=0, help="As of train, for each point.")
@click.option("--grace", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="As of train.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="SWEEP", help="Run what is missing or not done.")
@click.option("--table", type=click.Path(path_type=Path), metavar="SWEEP", help="Only its table. Starts nothing.")
@click.option("--task", type=int, hidden=True)
@click.option("--dry-run", is_flag=True, help="Print the points. Starts nothing, writes nothing.")
@json_option("The table as one JSON object on stdout.")
def command(words: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train CONFIG once for every combination of some values, and rank the results.

    All points are checked before the first one starts. The table is on stdout, best first by eval.best.
    """
    resume, shown = options["resume"], options["table"]
    if shown or resume:
        _alone(words, options)
    if options["task"] is not None:
        _become_task(_read(resume), options)
    if shown:
        _show(_read(shown), as_json)
        return
    sweep = _read(resume) if resume else None
    if sweep is None:
        config, points, configs = _draw(words, options)
        if dry_run:
            _print_points(points)
            return
        _share(dict(zip((point.name for point in points), configs, strict=True)), options)  # or why it cannot be
        from launch.sweep import store

        sweep = store.create(config, points, configs)
        say(f"sweep  {sweep.folder}  {len(points)} points")
    sys.exit(_run(sweep, options, as_json))


def _alone(words: Sequence[str], options: dict[str, Any]) -> None:
    named = "--resume" if options["resume"] else "--table"
    if options["resume"] and options["table"]:
        raise UserError("--resume runs what is missing, --table only looks: give one of them")
    if words or options["over"] or options["listed"]:
        raise UserError(
            f"{named} goes on with the points that the sweep has: leave CONFIG, overrides, --over and --list out"
        )


def _read(folder: Path) -> "Sweep":
    from launch.sweep import store

    return store.read(folder)


def _draw(words: tuple[str, ...], options: dict[str, Any]) -> "tuple[str, tuple[Point, ...], list[RunConfig]]":
    from launch.sweep.points import draw

    config, base = split_config(words)
    path = existing_config(config)
    if not options["over"] and not options["listed"]:
        raise UserError("what is to be varied? --over optimizer.lr=0.1,0.3, or --list FILE")
    return path, *draw(path, base, options["over"], options["listed"])


def _print_points(points: "Sequence[Point]") -> None:
    from launch.sweep.points import words

    for point in points:
        click.echo(f"{point.name}  {' '.join(words(point.overrides))}")
    say(f"{len(points)} points; nothing was started, nothing was written")


def _run(sweep: "Sweep", options: dict[str, Any], as_json: bool) -> int:
    """What is not done, here; then the table."""
    from launch.sweep import local, store, table

    with store.owning(sweep):
        open_rows = [row for row in table.look(sweep) if row.state not in (table.DONE, table.RUNNING)]
        todo = sorted((row.point for row in open_rows), key=lambda point: point.name)
        code = int(ExitCode.DONE)
        if todo:
            configs = {point.name: load(str(sweep.config_of(point)), ()) for point in todo}
            code = local.run(sweep, todo, _share(configs, options), train_flags(options))
        _show(sweep, as_json)
    if code != ExitCode.DONE:
        say(f"to go on with what is not done: dist-train sweep --resume {near(sweep.folder)}")
    return code


def _share(configs: "dict[str, RunConfig]", options: dict[str, Any]) -> "Share":
    from launch import host
    from launch.sweep import local

    return local.divide(configs, options["jobs"], options["nproc_per_node"], host.look())


def train_flags(options: dict[str, Any]) -> list[str]:
    """What each point's `dist-train train` is told beside where it lives."""
    grace = ["--grace", f"{options['grace']:g}"] if options["grace"] else []
    return ["--max-restarts", str(options["max_restarts"]), *grace]


def near(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def _show(sweep: "Sweep", as_json: bool) -> None:
    from launch.commands.runs import table as aligned
    from launch.sweep import table

    rows = table.look(sweep)
    table.write(sweep, rows)
    records = table.as_records(sweep, rows)
    sys.stdout.write(json.dumps(records, indent=2) + "\n" if as_json else aligned(table.cells(sweep, rows)))


def _become_task(sweep: "Sweep", options: dict[str, Any]) -> None:
    """In a task of an array: this process goes on as the training of one point."""
    number = options["task"]
    if not 0 <= number < len(sweep.points):
        raise UserError(f"--task {number}: {sweep.folder} has points 0 to {len(sweep.points) - 1}")
    become("launch", ["train", *sweep.train_words(sweep.points[number]), *train_flags(options)])
