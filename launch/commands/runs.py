"""`dist-train runs`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dist_train.config.problems import printable
from dist_train.config.stdout import aligned, tell
from dist_train.rundir.strict_json import to_json
from launch.commands.common import json_option
from launch.console import say

if TYPE_CHECKING:
    from launch.slurm.queue import JobStatus


@click.command()
@click.option("--root", default="runs", show_default=True, type=click.Path(), help="The folder that holds the runs.")
@json_option("A JSON list on stdout.")
def command(root: str, as_json: bool) -> None:
    """List the runs: name, state, step, best metric, folder, and what SLURM's queue says, where there is one.

    A state is submitted, running, done, stopped, failed, or died: recorded as running, but its processes are gone.
    """
    from launch.runs.listing import list_runs

    found = list_runs(Path(root))
    add_queue(found)
    if as_json:
        tell(to_json(found, indent=2))
    elif not found:
        say(f"no runs under {root}")
    else:
        tell(aligned(rows(found)))


def add_queue(runs: list[dict[str, Any]]) -> "list[JobStatus | None]":
    """Sets each run's `queue`, what SLURM says of its newest job, or None. Returns these. Queries SLURM once."""
    from dataclasses import asdict

    from launch.slurm import queue

    jobs = queue.look(job for run in runs for job in run["jobs"])
    found: list[JobStatus | None] = []
    for run in runs:
        known = [jobs[job] for job in run["jobs"] if job in jobs] if jobs else []
        newest = next((job for job in known if job.active), known[-1] if known else None)
        run["queue"] = {**asdict(newest), "text": f"{newest.job} {newest}"} if newest else None
        gone = jobs is not None and run["jobs"] and not (newest and newest.active)
        if gone and run["state"] in ("submitted", "running", "starting"):
            run["state"] = "cancelled" if run["state"] == "submitted" else "died"
        found.append(newest)
    return found


def rows(runs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of the table, header first; there is a column `queue` only if some run is in it."""
    head: tuple[str, ...] = ("name", "state", "queue", "step", "best", "where")
    found = [head, *map(_row, runs)]
    if not any(run["queue"] for run in runs):
        found = [row[:2] + row[3:] for row in found]
    return found


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    step, total, best = run["step"], run["total_steps"], run["best"]
    steps = "" if step is None else f"{step:,}" + (f"/{total:,}" if total else "")
    metric = f"{printable(best['metric'])} {best['value']:.4g} at {best['step']:,}" if best else ""
    queued = run["queue"]["text"] if run["queue"] else ""
    return printable(run["name"], 300), run["state"], queued, steps, metric, printable(run["path"], 4096)
