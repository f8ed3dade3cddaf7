"""`dist-train cache`."""

import os

import click

from dist_train.config.requests import CacheRequest, to_arguments

from .. import completion
from ..children import become
from ..configs import existing_config, is_override
from .common import json_option, launch_command


@launch_command()
@click.argument("target", metavar="CONFIG_OR_RUN", type=click.Path(), shell_complete=completion.config_or_run)
@click.argument("overrides", nargs=-1, metavar="[a.b=c]...", shell_complete=completion.words)
@click.option("--build", "action", flag_value="build", help="Decode what is missing, on all cores.")
@click.option("--verify", "action", flag_value="verify", help="Check all images against their checksums and files.")
@click.option("--drop", "action", flag_value="drop", help="Delete them.")
@json_option("One JSON object on stdout.")
def command(target: str, overrides: tuple[str, ...], action: str | None, as_json: bool) -> None:
    """What data.cache keeps of a config's or a run's data: folders, images, bytes.

    All of it may be done while a training runs. Exit code 1: some images are missing after --build, or damaged or
    changed by --verify; a training decodes these itself. 13: some cannot be read.
    """
    if not os.path.isdir(target):
        target = existing_config(None if is_override(target) else target)
        from dist_train.config.source import load

        load(target, overrides)  # for its mistakes, which are told in a moment here
    request = CacheRequest(target=target, overrides=overrides, action=action or "show", as_json=as_json)
    become("dist_train.commands.cache", to_arguments(request))
