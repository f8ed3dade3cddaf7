"""`dist-train checkpoints`."""

from typing import Any

import click

from dist_train.config.requests import CheckpointsRequest, to_arguments

from ..children import become
from .common import json_option, run_argument


@click.command()
@run_argument
@click.option("--verify", is_flag=True, help="Read every byte; exit code 4 when a checkpoint is damaged.")
@json_option("A JSON list on stdout, the oldest first.")
def command(**options: Any) -> None:
    """What a run has saved: step, when, size, world size, generation, which is the best.

    With --verify also whether each is sound, and if not, which file is bad and how. A damaged checkpoint is never used:
    a resume takes the one before it.
    """
    become("dist_train.commands.checkpoints", to_arguments(CheckpointsRequest(**options)))
