"""`dist-train predict`."""

import os

import click

from dist_train.config.requests import PredictRequest, to_arguments
from dist_train.errors import UserError

from ..children import become
from ..configs import is_override, load_recorded
from .common import json_option, launch_command, trust_option


@launch_command()
@click.argument("target", metavar="CHECKPOINT", type=click.Path(exists=True, file_okay=False))
@click.argument("words", nargs=-1, required=True, metavar="IMAGE...|FOLDER [a.b=c]...")
@trust_option
@json_option("One JSON list on stdout.")
def command(target: str, words: tuple[str, ...], trust: bool, as_json: bool) -> None:
    """Class and probability for each image, or for each image of a folder.

    CHECKPOINT may be a run directory: then its best checkpoint is used. Overrides are those of `evaluate`, such as
    data.resize=256.
    """
    paths = [os.path.expanduser(word) for word in words]
    images = [path for path in paths if not is_override(path) or os.path.exists(path)]
    if not images:
        raise UserError("which images? After the checkpoint come files, or folders of them")
    for image in images:
        if not os.path.exists(image):  # also for a name that no file can have
            raise UserError(f"{image}: no such file or folder")
    overrides = [path for path in paths if path not in images]
    load_recorded(target, overrides, trust=trust)  # reports mistakes before torch is imported
    chosen = {"images": tuple(images), "overrides": tuple(overrides)}
    request = PredictRequest(target=target, **chosen, trust=trust, as_json=as_json)
    become("dist_train.commands.predict", to_arguments(request))
