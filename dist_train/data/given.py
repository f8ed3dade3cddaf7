"""What a user gives a trained model to look at: pictures, rows of a table, rows of a file of datasets', texts."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.requests import STDIN
from dist_train.config.schema import HuggingFaceData, Table, Text, Tokens
from dist_train.data import datasets
from dist_train.data.datasets import LocalRank0First, huggingface, table
from dist_train.data.datasets.base import Crop, TensorImages
from dist_train.data.datasets.class_folders import EXTENSIONS
from dist_train.data.datasets.decoded import DecodedImages
from dist_train.data.datasets.text import tokenizer_of
from dist_train.data.datasets.tokenizers import FromFile, Tokenizer
from dist_train.data.decode import MOST_PIXELS, decode_file
from dist_train.data.resize import centre_crop, resize, resize_shorter_side
from dist_train.errors import DataError, UserError

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), with which Pillow converts to grey."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Inputs, as a map-style data set whose targets mean nothing, and their names.

    Attributes:
        kind: what the names are: `file`, or `row`, a number from 1.
        below: of pictures, the path below the folder that was given, or the file's own name.
    """

    dataset: Any
    kind: str
    names: Sequence[str | int]
    below: Sequence[Path] = ()


def read_given(words: Sequence[str], stdin: str, config: Any, data: Mapping[str, Any], *, whole: bool) -> Given:
    """Finds the inputs. Pictures are not read yet.

    Args:
        words: files and folders; `-` stands for what is in `stdin`: a list of pictures, or a CSV table.
        config: the section `data` of the training.
        data: what the checkpoint says of it.
        whole: bring pictures to the model's size as a whole, not only their middle.

    Raises:
        UserError: (exit 13) when there are none, or they are of another kind than the model takes.
    """
    shape: Sequence[int] | None = data.get("shape")
    rows = isinstance(config, Table) or shape is None or len(shape) != 3
    tables = (*table.FILES, *(huggingface.FORMATS if isinstance(config, HuggingFaceData) else ()))
    found = [word for word in words if Path(word).suffix.lower() in tables or (word == STDIN and rows)]
    if not found and not rows:
        assert shape is not None
        files = list(_pictures(words, stdin))
        names, below = [str(file) for file, _ in files], [place for _, place in files]
        pictures = Pictures(names, shape, getattr(config, "resize", None), whole)
        return Given(dataset=pictures, kind="file", names=names, below=below)
    if other := next((word for word in words if word not in found), None):
        raise DataError(f"{other}: this model takes rows of a {', '.join(tables)} file, or of CSV at -")
    if len(found) > 1:
        raise UserError(f"one table at a time, and {len(found)} are given: {', '.join(found)}")
    path = Path(found[0])
    dataset: Any
    if path.suffix.lower() in huggingface.FORMATS and isinstance(config, HuggingFaceData):
        dataset = huggingface.inputs_of(config, path)
    elif shape is None and path.suffix.lower() == ".npz":
        dataset = _Mappings(path)
    else:
        columns = data.get("columns")
        names = list(map(glob.escape, columns["inputs"])) if columns else getattr(config, "inputs", ["*"])
        content = stdin.removeprefix("\ufeff") if found[0] == STDIN else None
        values = table.read_inputs(path, content, names, data.get("scaling"))
        if shape is not None and values.shape[1:] != tuple(shape):
            raise DataError(f"{path} has rows of shape {list(values.shape[1:])}, and the model takes {list(shape)}")
        dataset = TensorImages(values, torch.zeros(len(values), dtype=torch.int64))
    return Given(dataset=dataset, kind="row", names=range(1, len(dataset) + 1))


def _pictures(words: Sequence[str], stdin: str) -> Iterator[tuple[Path, Path]]:
    """Each file, and its path below the folder that was given."""
    listed = [line for line in stdin.splitlines() if line.strip()]
    for name in chain.from_iterable(listed if word == STDIN else [word] for word in words):
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("[!.]*") if file.suffix.lower() in EXTENSIONS and file.is_file()
            )
            if not inside:
                raise DataError(f"{path}: no images there ({' '.join(EXTENSIONS)})")
            yield from ((file, file.relative_to(path)) for file in inside)
        elif os.path.exists(path):
            yield path, Path(path.name)
        else:
            raise DataError(f"{path}: no such file or folder")


class Pictures(DecodedImages):
    """Files of pictures, as the evaluation prepares them: uint8 [m, *shape]. The targets are their own heights and
    widths, int64 [m, 2].

    Args:
        shape: channels, 1 or 3, height, width.
        shorter: side before the middle is cut out; None for the model's own size.
        whole: nothing is cut off; the ratio of the sides may change.
    """

    def __init__(self, files: list[str], shape: Sequence[int], shorter: int | None, whole: bool) -> None:
        channels, height, width = shape
        if channels not in (1, 3) or height * width > MOST_PIXELS:
            raise UserError(
                f"this model takes inputs of shape {list(shape)}, and no pictures: give them as a .npz file"
            )
        if height != width and not whole:
            raise UserError(f"predict takes models of square images, this one's are {height}×{width}")
        super().__init__(height, shorter)
        self.shape, self.files, self._whole = tuple(shape), files, whole

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[Tensor, int]:
        return decode_file(self.files[index]), 0

    def path(self, index: int) -> str:
        return self.files[index]

    def __getitems__(self, indices: np.ndarray, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
        images = [self.read(index)[0] for index in indices.tolist()]
        return torch.stack([*map(self._fitted, images)]), torch.tensor([image.shape[1:] for image in images])

    def _fitted(self, image: Tensor) -> Tensor:
        channels, height, width = self.shape
        if channels == 1:
            weights = torch.tensor(GREY).view(3, 1, 1)
            image = (image * weights).sum(0, keepdim=True).round().to(torch.uint8)
        if self._whole:
            return resize(image, height, width)
        return centre_crop(resize_shorter_side(image, self._resize), height)


class _Mappings(torch.utils.data.Dataset):
    """Rows of the arrays of a .npz file, each by the array's name."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self._arrays = {name: torch.from_numpy(file[name]) for name in file.files}
            sizes = {len(array) for array in self._arrays.values()}
        except Exception as error:  # of zipfile, zlib, NumPy and torch, over what is no such file
            raise DataError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
        if len(sizes) != 1 or not self._arrays:
            raise DataError(f"the arrays in {path} have several lengths, or there are none")
        self._size = sizes.pop()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: array[index] for name, array in self._arrays.items()}


# ---------------------------------------------------------------- texts


@dataclass(frozen=True, kw_only=True)
class Coder:
    """From a text to tokens and back."""

    encode: Callable[[bytes], Iterable[int]]
    decode: Callable[[Sequence[int]], str]


def coder_of(config: Any, data: Mapping[str, Any], local_rank0_first: LocalRank0First) -> Coder:
    """What the training's data has made its tokens with.

    Raises:
        UserError: when there is none.
    """
    tokenizer: Tokenizer | None = None
    if isinstance(config, Text) and (config.tokenizer != "chars" or data.get("characters")):
        tokenizer = tokenizer_of(config, data.get("characters", ""))
    elif isinstance(config, Tokens) and config.tokenizer:
        tokenizer = FromFile(Path(config.tokenizer))
    if tokenizer is not None:
        if data.get("tokenizer", tokenizer.identity) != tokenizer.identity:
            raise DataError("data.tokenizer has other tokens than in the training: give the file of then")
        return Coder(encode=tokenizer.encode, decode=tokenizer.decode)
    dataset = datasets.build(config, local_rank0_first).train
    if not hasattr(dataset, "encode") or not hasattr(dataset, "decode"):
        raise UserError(f"{type(dataset).__name__} has no encode(text) and decode(tokens), which turn text into tokens")
    return Coder(encode=lambda text: dataset.encode(text.decode()), decode=dataset.decode)


def read_text(word: str, stdin: str) -> str:
    """The text to go on with: of a file, of `-`, or the word itself. What is no UTF-8 is there as surrogates.

    Raises:
        UserError: (exit 13) when the file cannot be read; for what is named like a file that is not there.
    """
    if word == STDIN:
        return stdin
    path = Path(word)
    if os.path.lexists(word):
        try:
            return path.read_bytes().decode(errors="surrogateescape")
        except OSError as error:
            raise DataError(f"cannot read {word}: {error.strerror}") from None
    if word.split() == [word] and 1 < len(path.suffix) < 6 and path.suffix[1:].isalnum():
        raise DataError(f"{word}: no such file; a text that looks like one comes through -")
    return word
