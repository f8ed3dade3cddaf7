"""`dist-train fingerprint`."""

import click

from dist_train.config.requests import FingerprintRequest, to_arguments
from launch.children import become
from launch.commands.common import json_option


@click.command()
@click.argument("run_or_checkpoint", type=click.Path(exists=True, file_okay=False))
@json_option("One JSON object on stdout.")
def command(run_or_checkpoint: str, as_json: bool) -> None:
    """One hash over the names, dtypes, shapes and bytes of all model and optimizer tensors.

    Of a run, the newest checkpoint's. Two runs with the same hash have the same bits.
    """
    request = FingerprintRequest(target=run_or_checkpoint, as_json=as_json)
    become("dist_train.commands.fingerprint", to_arguments(request))
