"""`dist-train runs`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dist_train.config.problems import printable
from dist_train.config.stdout import aligned, tell
from dist_train.rundir.strict_json import to_json

from ..console import say
from .common import json_option

if TYPE_CHECKING:
    from ..runs.listing import RunSummary


@click.command()
@click.option("--root", default="runs", show_default=True, type=click.Path(), help="The folder that holds the runs.")
@json_option("A JSON list on stdout.")
def command(root: str, as_json: bool) -> None:
    """List the runs: name, state, step, best metric, folder, and what SLURM's queue says, where there is one.

    A state is submitted, running, done, stopped, failed, or died: recorded as running, but its processes are gone.
    """
    from ..runs.listing import list_runs, with_queue

    found = with_queue(list_runs(Path(root)))
    if as_json:
        tell(to_json([as_json_row(run) for run in found], indent=2))
    elif not found:
        say(f"no runs under {root}")
    else:
        tell(aligned(rows(found)))


def as_json_row(run: "RunSummary") -> dict[str, Any]:
    row = asdict(run)
    if run.queue is not None:
        row["queue"]["text"] = f"{run.queue.job} {run.queue}"
    return row


def rows(runs: "list[RunSummary]") -> list[tuple[str, ...]]:
    """The rows of the table, header first; there is a column `queue` only if some run is in it."""
    found = [("name", "state", "queue", "step", "best", "where"), *map(_row, runs)]
    return found if any(run.queue for run in runs) else [row[:2] + row[3:] for row in found]


def _row(run: "RunSummary") -> tuple[str, ...]:
    steps = "" if run.step is None else f"{run.step:,}" + (f"/{run.total_steps:,}" if run.total_steps else "")
    best = f"{printable(run.best.metric)} {run.best.value:.4g} at {run.best.step:,}" if run.best else ""
    queued = f"{run.queue.job} {run.queue}" if run.queue else ""
    return printable(run.name, 300), run.state, queued, steps, best, printable(run.path, 4096)
