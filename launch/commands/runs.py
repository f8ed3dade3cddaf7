"""`dist-train runs`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from launch.commands.common import json_option
from launch.console import say


@click.command()
@click.option("--root", default="runs", show_default=True, type=click.Path(), help="The folder that holds the runs.")
@json_option("A JSON list on stdout.")
def command(root: str, as_json: bool) -> None:
    """What there is: name, state, step, best metric, where.

    A state is running, done, stopped, failed, or died: said to be running, and its processes are gone.
    """
    from launch.run_dirs import list_runs

    found = list_runs(Path(root))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    elif not found:
        say(f"no runs under {root}")
    else:
        sys.stdout.write(table([("name", "state", "step", "best", "where"), *map(_row, found)]))


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    step, total, best = run["step"], run["total_steps"], run["best"]
    steps = "" if step is None else f"{step:,}" + (f"/{total:,}" if total else "")
    metric = f"{best['metric']} {best['value']:.4g} at {best['step']:,}" if best else ""
    return run["name"], run["state"], steps, metric, run["path"]


def table(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns, two blanks between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)
