"""`dist-train export`."""

from pathlib import Path

import click

from dist_train.config.requests import ExportRequest, to_arguments
from dist_train.errors import UserError

from .. import completion
from ..children import become
from ..configs import inputs_and_overrides, load_recorded
from .common import json_option, launch_command, run_argument, trust_option

ENDINGS = {".safetensors": "safetensors", ".pt2": "torch"}


@launch_command()
@run_argument
@click.argument("words", nargs=-1, metavar="[INPUT]... [a.b=c]...", shell_complete=completion.files)
@click.option("--to", type=click.Path(), required=True, metavar="FILE|FOLDER", help="FILE.safetensors or FILE.pt2.")
@click.option("--format", "kind", type=click.Choice([*ENDINGS.values()]), help="Where --to is a folder: safetensors.")
@trust_option
@json_option("One JSON object on stdout.")
def command(target: str, words: tuple[str, ...], to: str, kind: str | None, trust: bool, as_json: bool) -> None:
    """A saved model as a file for other programs, and beside it a .json with config, classes, shape and normalisation.

    Of a run, the best checkpoint is taken. The file is read back and compared with the model before it is kept, on
    INPUT, as `predict` takes it, else on samples of the evaluation: data.root=/elsewhere says where they are now.
    """
    ending = Path(to).suffix
    named = ENDINGS.get(ending)
    if (ending and named is None) or (kind and named and kind != named):
        raise UserError(f"--to {to}: a .safetensors file for --format safetensors, a .pt2 file for torch, or a folder")
    inputs, overrides = inputs_and_overrides(words)
    load_recorded(target, overrides, trust=trust)  # reports mistakes before torch is imported
    request = ExportRequest(
        target=target,
        to=to,
        format=named or kind or "safetensors",
        inputs=inputs,
        overrides=overrides,
        trust=trust,
        as_json=as_json,
    )
    become("dist_train.commands.export", to_arguments(request))
