"""`dist-train fingerprint`."""

from typing import Any

import click

from dist_train.config.requests import FingerprintRequest, to_arguments

from ..children import become
from .common import json_option, run_argument


@click.command()
@run_argument
@json_option("One JSON object on stdout.")
def command(**options: Any) -> None:
    """One hash over the names, dtypes, shapes and bytes of all model and optimizer tensors.

    Of a run, the newest checkpoint's. Two runs with the same hash have the same bits.
    """
    become("dist_train.commands.fingerprint", to_arguments(FingerprintRequest(**options)))
