"""`dist-train sweep`."""

import sys
from typing import Any

import click

from dist_train.errors import UserError

from .. import completion
from .common import json_option, launch_command, trust_option, with_options
from .slurm import KEYS, as_overrides

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


@launch_command(epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[CONFIG] [a.b=c]...", shell_complete=completion.words)
@click.option(
    "--over", multiple=True, metavar="KEY=V,V,...", help="What is varied; see below.", shell_complete=completion.words
)
@click.option("--list", "listed", type=click.Path(), help="A file of points; see below.")
@click.option("--jobs", type=click.IntRange(1), help="Points at once. Here: 1, or equal shares of cores or GPUs.")
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks of each point. auto: all of its share.")
@click.option("--max-restarts", type=click.IntRange(0), default=0, help="As of train, for each point.")
@click.option("--grace", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="As of train.")
@click.option("--resume", type=click.Path(), metavar="SWEEP", help="Run what is missing or not done.")
@click.option("--table", type=click.Path(), metavar="SWEEP", help="Only its table. Starts nothing.")
@trust_option
@click.option("--slurm", is_flag=True, help="As one SLURM array, a task for each point; --jobs of them at once.")
@with_options(
    *(click.option(f"--{key}", metavar="VALUE", help="With --slurm, as of dist-train slurm.") for key in KEYS)
)
@click.option("--follow", is_flag=True, help="With --slurm: wait for the end, then the table. Ctrl-C leaves the jobs.")
@click.option("--dry-run", is_flag=True, help="Print the points, or SLURM's script. Starts and writes nothing.")
@json_option("The table as one JSON object on stdout.")
def command(words: tuple[str, ...], **options: Any) -> None:
    """Train CONFIG once for every combination of some values, and rank the results.

    All points are checked before the first one starts. The table is on stdout, best first by eval.best.
    """
    for flag in ("follow", *SLURM_KEYS):
        if options[flag] and not options["slurm"]:
            raise UserError(f"--{flag.replace('_', '-')} is for a sweep in SLURM's queue: add --slurm")
    overrides = tuple(as_overrides({key: options.pop(key) for key in SLURM_KEYS}))
    from ..sweep.start import SweepRequest, run_sweep

    sys.exit(run_sweep(SweepRequest(words=words, slurm_overrides=overrides, **options)))
