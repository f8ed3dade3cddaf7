"""`dist-train predict`."""

import click

from launch.commands.common import become, json_option


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False))
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True), metavar="IMAGE...|FOLDER")
@json_option("One JSON list on stdout.")
def command(checkpoint: str, images: tuple[str, ...], as_json: bool) -> None:
    """Class and probability for each image, or for each image of a folder.

    CHECKPOINT may be a run directory: then its best checkpoint is used.
    """
    become("dist_train.commands.predict", [checkpoint, *images, *["--json"] * as_json])
