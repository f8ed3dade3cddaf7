"""`dist-train checkpoints`."""

import click

from dist_train.config.requests import CheckpointsRequest, to_arguments
from launch.children import become
from launch.commands.common import json_option


@click.command()
@click.argument("run_or_checkpoint", type=click.Path(exists=True, file_okay=False))
@click.option("--verify", is_flag=True, help="Read every byte; exit code 4 when a checkpoint is damaged.")
@json_option("A JSON list on stdout, the oldest first.")
def command(run_or_checkpoint: str, verify: bool, as_json: bool) -> None:
    """What a run has saved: step, when, size, world size, generation, which is the best.

    With --verify also whether each is sound, and if not, which file is bad and how. A damaged checkpoint is never used:
    a resume takes the one before it.
    """
    request = CheckpointsRequest(target=run_or_checkpoint, verify=verify, as_json=as_json)
    become("dist_train.commands.checkpoints", to_arguments(request))
