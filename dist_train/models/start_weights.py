"""Weights to begin with, from a safetensors file."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dist_train.errors import UserError
from dist_train.rundir.reading import open_regular


@torch.no_grad()
def load_start_weights(model: nn.Module, path: str) -> None:
    """Copies every parameter and buffer from the file, in the model's dtypes.

    Raises:
        UserError: when the file cannot be read, or its names or shapes are not the model's.
    """
    try:
        os.close(open_regular(Path(path)))  # a pipe would be waited for
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"model.start_weights: {path} cannot be read: {reason}") from None
    wanted = model.state_dict()
    misshapen = (
        f"{name} {list(found[name].shape)}, the model's is {list(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    )
    problems = [
        _listed("missing", (name for name in wanted if name not in found)),
        _listed("not in the model", (name for name in found if name not in wanted)),
        _listed("of another shape", misshapen),
    ]
    if any(problems):
        raise UserError(f"model.start_weights: {path} does not fit the model; {'; '.join(filter(None, problems))}")
    for name, tensor in wanted.items():
        tensor.copy_(found[name])


def _listed(what: str, names: Iterable[str], most: int = 5) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most])}{more}" if names else ""
