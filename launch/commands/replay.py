"""`dist-train replay`."""

import sys
from pathlib import Path
from typing import Any

import click

from dist_train.config.requests import ReplayRequest
from dist_train.errors import UserError
from dist_train.rundir.layout import RunDir

from ..configs import load_recorded
from .common import RUN, json_option, launch_command, trust_option
from .on_ranks import run_on_ranks


@launch_command()
@click.argument("run", **RUN)
@click.option("--from-step", type=click.IntRange(1), required=True, metavar="A", help="The first step, counted from 1.")
@click.option("--to-step", type=click.IntRange(1), required=True, metavar="B", help="The last step.")
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks, up to batch.microbatches.")
@click.option(
    "--show", is_flag=True, help="Each microbatch's loss and samples, and the largest gradients by parameter."
)
@trust_option
@json_option("One JSON object on stdout.")
def command(run: str, nproc_per_node: str | None, trust: bool, **options: Any) -> None:
    """Compute the steps A to B of a run again, and compare them with what it recorded.

    Begins at the nearest checkpoint before A. Says "bit-identical", or the first step and quantity that differ, with
    both values. Nothing is written into the run, which may still be going on. Exit code 0: the same; 1: not the same.
    """
    if not RunDir(Path(run)).config.exists():
        raise UserError(f"{run}: no run directory (no config.yaml)")
    config = load_recorded(run, (), trust=trust)

    def request(outcome: Path) -> ReplayRequest:
        return ReplayRequest(run=run, trust=True, outcome=str(outcome), **options)

    sys.exit(run_on_ranks("replay", config, nproc_per_node, request))
