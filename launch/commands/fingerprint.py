"""`dist-train fingerprint`."""

import click

from launch.commands.common import become, json_option


@click.command()
@click.argument("run_or_checkpoint", type=click.Path(exists=True, file_okay=False))
@json_option("One JSON object on stdout.")
def command(run_or_checkpoint: str, as_json: bool) -> None:
    """One hash over the names, dtypes, shapes and bytes of all model and optimizer tensors.

    Of a run, the newest checkpoint's. Two runs with the same hash have the same bits.
    """
    become("dist_train.commands.fingerprint", [run_or_checkpoint, *["--json"] * as_json])
