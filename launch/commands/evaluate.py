"""`dist-train evaluate`."""

import sys
from typing import Any

import click

from dist_train.config.requests import EvaluateRequest

from .. import completion
from ..configs import load_recorded
from .common import json_option, launch_command, run_argument, trust_option
from .on_ranks import run_on_ranks


@launch_command()
@run_argument
@click.argument("overrides", nargs=-1, metavar="[a.b=c]...", shell_complete=completion.words)
@click.option("--split", type=click.Choice(["evaluation", "test", "train"]), default="evaluation", show_default=True)
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks. The figures do not depend on it.")
@trust_option
@json_option("One JSON object on stdout, with all classes, and loss, accuracy, … at its top level.")
def command(target: str, overrides: tuple[str, ...], nproc_per_node: str | None, trust: bool, **options: Any) -> None:
    """Metrics of a run's or a checkpoint's model on data that it was not trained on.

    Of a run, the best checkpoint is evaluated. Nothing is written into it. Overrides of data, eval, loader and
    distributed say where the data is now: data.root=/elsewhere.
    """
    config = load_recorded(target, overrides, trust=trust)
    request = EvaluateRequest(target=target, overrides=overrides, trust=True, **options)
    sys.exit(run_on_ranks("evaluate", config, nproc_per_node, lambda _: request))
