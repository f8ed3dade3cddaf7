"""WebDataset's tar files as they are: indexed once, then read at random, so that order and resume are exact."""

import glob
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dist_train.config.imports import resolve_import
from dist_train.config.problems import printable
from dist_train.config.schema import ImageCache, Shards
from dist_train.data.cache.files import Stamp
from dist_train.data.cache.images import Origin, Room
from dist_train.data.datasets.base import Splits
from dist_train.data.datasets.custom import shape_of
from dist_train.data.datasets.decoded import DecodedImages, Kept, PartOf, kept_images
from dist_train.data.datasets.part import Part, split, whole
from dist_train.data.decode import decode_bytes
from dist_train.data.tars.index import TarIndex, index_of
from dist_train.data.tars.samples import TarSamples
from dist_train.errors import DataError

_THREADS = 16
"""Tars that are looked at at once: most of the time is spent waiting for storage."""
_SOON_S = 0.02
"""How long tars are looked at one by one: where they are near and have been indexed, threads would only cost time."""
_MOST_TARS = 1_000_000


class ShardImages(PartOf, DecodedImages):
    """Samples that are an image and its class."""

    threads = True

    def __init__(
        self, tars: TarSamples, part: Part, config: Shards, classes: Sequence[str] | None, kept: Kept | None = None
    ) -> None:
        PartOf.__init__(self, tars, part)
        DecodedImages.__init__(self, config.image_size, config.resize, kept)
        self._tars = tars
        self._image, self._target, self._field = config.image, config.target, config.target_field
        self._numbers = {name: number for number, name in enumerate(classes or ())}

    def read(self, index: int) -> tuple[Tensor, int]:
        found = self._tars.read(self._part[index], {*self._image, self._target})
        content = next(found[name] for name in self._image if name in found)
        return decode_bytes(content, lambda: self.path(index)), self._class(found[self._target], index)

    def target(self, index: int) -> int:
        return self._class(self._tars.read(self._part[index], {self._target})[self._target], index)

    def stamp(self, index: int) -> Stamp:
        return Stamp(*self._tars.stamp(self._part[index]))

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        found = [self._tars.stamp(row) for row in self.rows(indices).tolist()]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def encoded(self, index: int) -> tuple[bytearray, Stamp]:
        found = self._tars.read(self._part[index], self._image)
        return next(found[name] for name in self._image if name in found), self.stamp(index)

    def _class(self, content: bytearray, index: int) -> int:
        """A class's number, written as such or as its name.

        Raises:
            UserError: naming the sample, when it is neither.
        """
        try:
            value = content.decode().strip() if self._field is None else json.loads(content)[self._field]
        except (ValueError, LookupError, TypeError):
            asked = "no text" if self._field is None else f"no JSON object with the field {self._field}"
            raise DataError(f"{self.path(index)}: .{self._target} holds {asked}") from None
        text = str(value)
        if text in self._numbers and not isinstance(value, int):
            return self._numbers[text]
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            words = "a class's number or name" if self._numbers else "a class's number (names need data.classes)"
            said = printable(text, 60)
            raise DataError(f"{self.path(index)}: .{self._target} holds {said!r}, and must hold {words}")
        return int(text)


class ShardSamples(PartOf):
    """Samples that the user's own function makes of the members' bytes."""

    def __init__(self, tars: TarSamples, part: Part, decode: Callable[[Mapping[str, bytearray]], Any]) -> None:
        super().__init__(tars, part)
        self._tars, self._decode = tars, decode

    def __getitem__(self, index: int) -> Any:
        members = self._tars.read(self._part[index])
        try:
            return self._decode(members)
        except Exception as error:
            error.add_note(f"while decoding {self.path(index)}")
            raise


def build(config: Shards, local_rank0_first: Callable[[], AbstractContextManager[None]]) -> Splits:
    names = [name for name in ("train", "eval", "test") if getattr(config, name) is not None]
    paths = {name: expanded(getattr(config, name), f"data.{name}") for name in names}
    with local_rank0_first():
        indices, notes = _indexed(dict.fromkeys(path for tars in paths.values() for path in tars), config.index_folder)
    classes = _classes(config.classes)
    decode = resolve_import(config.decode, "data.decode") if config.decode else None
    wanted = [] if decode else [config.image, [config.target]]
    tars = {name: TarSamples([indices[path] for path in paths[name]], wanted) for name in names}

    kept: dict[str, Kept] = {}
    if isinstance(config.cache, ImageCache):
        room = Room(config.cache)
        for name, of in tars.items():
            origin = Origin(name=str(paths[name][0].parent / name), rows=len(of), digest=partial(_digest, of, config))
            kept[name] = kept_images(config.cache, config.image_size, config.resize, origin, room)

    def part(name: str, chosen: Part) -> ShardImages | ShardSamples:
        if decode is not None:
            return ShardSamples(tars[name], chosen, decode)
        return ShardImages(tars[name], chosen, config, classes, kept.get(name))

    if config.eval_fraction is None:
        train, evaluation = (part(name, whole(len(tars[name]))) for name in ("train", "eval"))
    else:
        train, evaluation = (
            part("train", one) for one in split(len(tars["train"]), config.eval_fraction, config.split_seed)
        )
    test = part("test", whole(len(tars["test"]))) if config.test else None
    shape, outputs = (train.shape, None) if isinstance(train, ShardImages) else shape_of(train, config.on_error)
    notes += _left_out(tars.values(), config)
    known: dict[str, Any] = {"classes": classes, "shape": shape, "outputs": outputs, "notes": tuple(notes)}
    return Splits(train=train, evaluation=evaluation, test=test, **known)


def _digest(tars: TarSamples, config: Shards) -> str:
    """Of the tars, and of what says which member of a sample is its image."""
    return " ".join([tars.fingerprint(), *config.image])


def expanded(patterns: str | Sequence[str], what: str) -> list[Path]:
    """The files that are named: braces as a shell expands them, then `*`, `?` and `[…]`; in the order of the patterns,
    those of one pattern sorted.

    Raises:
        UserError: when one names no file, or a file is named twice.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in [glob.escape(pattern)] if os.path.exists(pattern) else _braces(pattern):
            files = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name] * os.path.exists(name)
            if not files:
                raise DataError(f"{what}: there is no file {Path(name).absolute()}")
            found += map(Path, files)
    if twice := len(found) - len(set(found)):
        again = next(path for place, path in enumerate(found) if path in found[:place])
        raise DataError(f"{what} names {twice} files twice, such as {again}")
    return found


def _braces(pattern: str) -> list[str]:
    """`{000..099}` and `{a,b}`, from the left."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        options = match[3].split(",")
    else:
        first, last = int(match[1]), int(match[2])
        if abs(last - first) >= _MOST_TARS:
            raise DataError(f"{pattern} names more than {_MOST_TARS:,} files")
        width = max(map(len, match.group(1, 2))) if any(text[0] == "0" for text in match.group(1, 2)) else 0
        options = [f"{n:0{width}}" for n in range(first, last + 1)] or [
            f"{n:0{width}}" for n in range(first, last - 1, -1)
        ]
    return [name for one in options for name in _braces(pattern[: match.start()] + one + pattern[match.end() :])]


def _indexed(paths: Mapping[Path, Any], folder: str | None) -> tuple[dict[Path, TarIndex], list[str]]:
    """The indices by tar, and a line for the user where some were made."""
    begun, tars, at = time.monotonic(), list(paths), Path(folder) if folder else None
    found: list[tuple[TarIndex, bool]] = []
    while len(found) < len(tars) and time.monotonic() - begun < _SOON_S:
        found.append(index_of(tars[len(found)], at))
    with ThreadPoolExecutor(_THREADS) as pool:
        found += pool.map(lambda path: index_of(path, at), tars[len(found) :])
    new = sum(is_new for _, is_new in found)
    notes = [f"{new:,} of {len(paths):,} tars were indexed, in {time.monotonic() - begun:.1f} s"] if new else []
    return {index.tar: index for index, _ in found}, notes


def _left_out(sets: Any, config: Shards) -> list[str]:
    left = {tar: count for tars in sets for tar, count in tars.left_out.items()}
    if not left:
        return []
    need = f".{' or .'.join(config.image)} and .{config.target}"
    return [f"{sum(left.values()):,} samples have no {need}, and are left out ({next(iter(left))} has the first)"]


def _classes(given: int | str | list[str] | None) -> tuple[str, ...] | None:
    """The names of the classes, in the order of their numbers."""
    if given is None:
        return None
    if isinstance(given, int):
        return tuple(map(str, range(given)))
    try:
        names = Path(given).read_text().splitlines() if isinstance(given, str) else given
    except (OSError, ValueError) as error:
        raise DataError(f"data.classes: cannot read {given}: {getattr(error, 'strerror', error)}") from error
    if not names or len(set(names)) < len(names):
        raise DataError("data.classes: a class has no name, or two have the same one")
    return tuple(names)
