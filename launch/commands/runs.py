"""`dist-train runs`."""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dist_train.config.problems import printable
from dist_train.config.problems import shown as as_written
from dist_train.config.stdout import aligned, tell
from dist_train.rundir.strict_json import to_json

from ..console import say
from .common import json_option

if TYPE_CHECKING:
    from ..runs.listing import RunSummary

FEWEST = 3
"""Columns that a terminal shows however narrow it is."""


@click.command()
@click.option("--root", default="runs", show_default=True, type=click.Path(), help="The folder that holds the runs.")
@click.option("--sort", type=click.Choice(["start", "best", "duration", "name"]), default="start", show_default=True)
@json_option("A JSON list on stdout.")
def command(root: str, sort: str, as_json: bool) -> None:
    """List the runs: state, step, best metric, how long and since when, what differs in the config from the run of
    that name before, why it failed, folder, and what SLURM's queue says, where there is one.

    A state is submitted, running, done, stopped, failed, or died: recorded as running, but its processes are gone.
    A terminal shows what has room in it; a pipe gets all of it.
    """
    from ..runs.listing import list_runs, place, with_changes, with_queue

    found = sorted(with_changes(with_queue(list_runs(Path(root)))), key=lambda run: place(run, sort))
    if as_json:
        tell(to_json([as_json_row(run) for run in found], indent=2))
    elif not found:
        say(f"no runs under {root}")
    else:
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        tell(runs_table(found, room))


def as_json_row(run: "RunSummary") -> dict[str, Any]:
    row = asdict(run)
    if run.queue is not None:
        row["queue"]["text"] = f"{run.queue.job} {run.queue}"
    return row


def runs_table(runs: "list[RunSummary]", room: int | None) -> str:
    """Aligned columns without the empty ones; of little room, the first have it. What differs and why it failed have
    lines of their own, which a terminal cuts."""
    cells = [_row(run) for run in runs]
    names = [name for name in cells[0] if any(row[name] for row in cells)]
    while True:
        lines = aligned([names, *([row[name] for name in names] for row in cells)]).split("\n")
        if room is None or len(names) <= FEWEST or max(map(len, lines)) <= room:
            break
        names.pop()
    shown = lines[:1]
    for line, run in zip(lines[1:], runs, strict=True):
        changed = [f"{key} {as_written(old)} → {as_written(new)}" for key, (old, new) in run.changed.items()]
        shown += [line, *["    " + ", ".join(changed)] * bool(changed), *[f"    ✗ {run.why}"] * bool(run.why)]
    shown = [printable(line, 4096) for line in shown]
    return "\n".join(line if room is None or len(line) <= room else f"{line[: room - 1]}…" for line in shown)


def _row(run: "RunSummary") -> dict[str, str]:
    from dist_train.report.words import date, figure, label, seconds

    steps = "" if run.step is None else f"{run.step:,}" + (f"/{run.total_steps:,}" if run.total_steps else "")
    return {
        "name": printable(run.name, 300),
        "state": run.state,
        "best": f"{printable(label(run.best.metric))} {figure(run.best.metric, run.best.value)}" if run.best else "",
        "queue": f"{run.queue.job} {run.queue}" if run.queue else "",
        "took": seconds(run.seconds) if run.seconds is not None else "",
        "step": steps,
        "started": date(run.began).removesuffix(" UTC"),
        "where": printable(run.path, 4096),
    }
