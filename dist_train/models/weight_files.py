"""Named tensors from the files in which people keep weights: safetensors, torch.save's, and folders of either. What a
file is, its content says, and not its name. Nothing that came in a file is ever run.
"""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dist_train.config.patterns import listed
from dist_train.config.problems import printable
from dist_train.errors import UserError
from dist_train.rundir.reading import open_regular, read_json

Tensors = dict[str, Tensor]

_FOLDER: tuple[str, ...] = ("ema.safetensors", "model.safetensors.index.json", "model.safetensors")
_FOLDER += ("pytorch_model.bin.index.json", "pytorch_model.bin")
"""What a folder may hold, the first that is there counts: a checkpoint of ours has averaged weights beside the others;
Hugging Face's folders have an index where the weights are in several files."""
_LARGEST_INDEX = 64 * 2**20
"""Bytes; an index names every tensor."""
_NESTED = ("state_dict", "model_state_dict", "model_state", "model")
"""Where Lightning, timm, torchvision's references and others keep the weights beside the optimizer's."""


def read_weights(path: Path) -> Tensors:
    """All tensors of a file or folder by name, on the CPU. Most files are mapped: a tensor is read when it is used.

    Raises:
        UserError: in one line, when it cannot be read or holds no named tensors.
    """
    if not path.is_dir():
        return _file(path)
    name = next((name for name in _FOLDER if (path / name).exists()), None)
    if name is None:
        raise _unreadable(path, f"the folder has none of {', '.join(_FOLDER)}")
    return _sharded(path / name) if name.endswith(".json") else _file(path / name)


def _sharded(index: Path) -> Tensors:
    """What an index of Hugging Face's names: {"weight_map": {tensor: file beside the index}}."""
    try:
        weight_map: dict[str, str] = read_json(index, _LARGEST_INDEX)["weight_map"]
        files = sorted(set(weight_map.values()))
        if any(os.path.basename(file) != file or file in ("", ".", "..") for file in files):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _unreadable(index, "it is no index of weights beside it") from None
    except OSError as error:
        raise _unreadable(index, error.strerror or error) from None
    found: Tensors = {}
    for file in files:
        found |= _file(index.parent / file)
    if lacking := weight_map.keys() - found.keys():
        raise _unreadable(index, f"it names tensors that its files do not hold: {listed(lacking)}")
    return found


def _file(path: Path) -> Tensors:
    try:
        with os.fdopen(open_regular(path), "rb") as file:  # a pipe would be waited for
            head = file.read(32)
        if head[8:9] == b"{":
            return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or error) from None
    if head.startswith((b"PK", b"\x80")):
        return _of_torch(path, is_zip=head.startswith(b"PK"))
    if head.startswith(b"version https://git-lfs"):
        raise _unreadable(path, "it stands for a file that Git LFS has not fetched: git lfs pull")
    raise _unreadable(path, "it is neither a safetensors file nor one of torch.save")


def _of_torch(path: Path, *, is_zip: bool) -> Tensors:
    """Of torch.save; before torch 1.6 that wrote no zip archive, which cannot be mapped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on TorchScript, which is refused
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged file can end in any
        raise _unreadable(path, _reason(str(error))) from None
    state = content
    while isinstance(state, Mapping):
        inner = next((state[key] for key in _NESTED if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
            break
        state = inner
    holds = listed(list(map(str, content))) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise _unreadable(path, f"it holds no weights by name but {printable(holds, 200) or 'nothing'}")


def _reason(error: str) -> str:
    refused = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", error)
    if refused or "Weights only load failed" in error:
        what = refused[1].rstrip(".") if refused else "more than tensors"
        alone = "torch.save(model.state_dict(), FILE) saves weights alone"
        return f"it holds {what}, and reading that would run code; {alone}"
    if "TorchScript" in error:
        return "it is a TorchScript archive; torch.save(torch.jit.load(FILE).state_dict(), OTHER) saves weights alone"
    return error


def _unreadable(path: Path, reason: object) -> UserError:
    text = printable(" ".join(str(reason).split()), 300)
    return UserError(f"model.start_weights: {printable(str(path), 300)} cannot be read: {text}")
