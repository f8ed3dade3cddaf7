"""`dist-train predict`."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dist_train.config.requests import STDIN, PredictRequest, to_arguments
from dist_train.errors import UserError

from .. import completion
from ..children import become
from ..configs import inputs_and_overrides, load_recorded
from .common import json_option, launch_command, run_argument, trust_option
from .on_ranks import run_on_ranks


@launch_command()
@run_argument
@click.argument("words", nargs=-1, required=True, metavar="INPUT... [a.b=c]...", shell_complete=completion.files)
@click.option("--top", type=click.IntRange(1), default=1, metavar="K", help="The K likeliest classes.")
@click.option("--length", type=click.IntRange(0), default=200, show_default=True, metavar="N", help="Tokens of a text.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="T",
    help="Draw the tokens: 1 by their probabilities, less for the likelier ones, 0 always the likeliest.",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Of these draws.")
@click.option(
    "--out",
    type=click.Path(),
    metavar="FILE.csv|FILE.json|FOLDER",
    help="Write there; of a segmentation, masks into a folder.",
)
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks. The answers do not depend on it.")
@trust_option
@json_option("One JSON list on stdout.")
def command(
    target: str, words: tuple[str, ...], out: str | None, nproc_per_node: str | None, trust: bool, **options: Any
) -> None:
    """What a saved model says of inputs of your own.

    Of a run, the best checkpoint is asked. INPUT is a picture, a folder of them, a table (.csv, .tsv, .npz), or a text,
    as the model takes it; - reads a list of pictures, a CSV table or a text from standard input. Overrides are those of
    `evaluate`, such as eval.batch_size=32.
    """
    inputs, overrides = inputs_and_overrides(words)
    config = load_recorded(target, overrides, trust=trust)  # reports mistakes before torch is imported
    if not inputs:
        raise UserError("predict from what? After the run come files, folders or texts, or - for standard input")
    takes_text = ":" in config.task.name or getattr(config.task, "takes_text", False)
    for path in inputs:
        if path != STDIN and not takes_text and not os.path.exists(path):
            raise UserError(f"{path}: no such file or folder")  # also for a name that no file can have
    if out is not None and Path(out).suffix.lower() not in ("", ".csv", ".json"):
        raise UserError(f"--out {out} is neither a .csv nor a .json file, nor a folder")
    chosen = {"target": target, "inputs": inputs, "overrides": overrides, "trust": trust, "out": out, **options}
    if nproc_per_node is None:
        become("dist_train.commands.predict", to_arguments(PredictRequest(**chosen)))
    with _stdin(inputs) as stdin:
        request = PredictRequest(stdin=stdin, **{**chosen, "trust": True})
        code = run_on_ranks("predict", config, nproc_per_node, lambda _: request)
    sys.exit(code)


@contextmanager
def _stdin(inputs: tuple[str, ...]) -> Iterator[str | None]:
    """A file of what comes from standard input, which ranks do not have."""
    if STDIN not in inputs:
        yield None
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(sys.stdin.buffer.read())
        file.flush()
        yield file.name
