"""The decoded images of a list of files: kept as they are used, checked as they are first read, shared by all ranks."""

import hashlib
import mmap
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dist_train.config.schema import ImageCache
from dist_train.config.types import in_bytes
from dist_train.data.cache.files import INDEX, PIXELS, ImageFiles, Stamp, blocks_of, content_hash
from dist_train.data.cache.form import Form
from dist_train.data.decode import decode_bytes, decoder_identity
from dist_train.errors import UserError
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.files import write_atomic
from dist_train.rundir.strict_json import to_json

_VERSION = 1
META = "meta.json"
COUNTS = ("read", "decoded", "too long", "damaged", "changed")
"""What is counted: images that came from the cache, and those that were decoded, some of these for a reason."""
_COUNTERS = 1024
"""Places to count in, so that no two threads that live at the same time share one."""
_SPARE = 0.05
"""Share of a file system that is left free."""
_LOOK_EVERY = 32
"""Images that are kept between two looks at the room there is."""
_TOGETHER, _MOST_TOGETHER = 1 << 16, 64
"""Bytes of encoded images that are decoded together, and how many at most. Of what is decoded, only one is large."""


class Source(Protocol):
    """A data set of encoded images."""

    def row(self, index: int) -> int:
        """The row of a sample in its list of files."""

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        """Of the files of samples' images, int64 [n, 2]. Raises OSError."""

    def encoded(self, index: int) -> tuple[bytes | bytearray, Stamp]:
        """The bytes of a sample's image, and the stamp that their file had then. Raises UserError."""

    def path(self, index: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A list of files with images.

    Attributes:
        name: for people.
        rows: images in it.
        digest: what the list is known by again.
    """

    name: str
    rows: int
    digest: Callable[[], str]


class Room:
    """How much one config may keep, in all its lists of files."""

    def __init__(self, config: ImageCache) -> None:
        self._limit = None if config.limit is None else in_bytes(config.limit)
        self.kept: list[KeptImages] = []

    def left(self, files: ImageFiles) -> tuple[int, str]:
        """Bytes, and why there are no more."""
        free, whole = files.free()
        spare = free - int(_SPARE * whole)
        if self._limit is not None and (left := self._limit - sum(kept.taken for kept in self.kept)) < spare:
            return left, f"data.cache.limit of {self._limit / 1e9:g} GB is reached"
        return spare, f"less than {100 * _SPARE:.0f} % of the disk is free"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Given:
    """A sample, its row, and its image: as it was found in the files, or else encoded."""

    index: int
    row: int
    found: Tensor | None
    encoded: tuple[bytes | bytearray, Stamp] | None


class KeptImages:
    """The images of a list of files in one form. Any number of threads may use it. Processes that are forked from this
    one share what it knows, and its counts.

    Args:
        room: how much may be kept of this list and of others.
    """

    def __init__(self, config: ImageCache, form: Form, origin: Origin, room: Room) -> None:
        self.form, self.origin, self.config, self._room = form, origin, config, room
        self._share()
        room.kept.append(self)

    def _share(self) -> None:
        """The memory for it: of rows that were checked the height and width, what the user was told, and counts."""
        self._files: ImageFiles | bool | None = None
        self._until_look = 0
        self._known = np.frombuffer(mmap.mmap(-1, 4 * self.origin.rows + 4), np.uint32)
        self._told = mmap.mmap(-1, 16)
        self._counts = np.frombuffer(mmap.mmap(-1, 8 * _COUNTERS * len(COUNTS)), np.int64).reshape(_COUNTERS, -1)

    def __getstate__(self) -> dict[str, Any]:
        sent = ("form", "origin", "config", "_room", "folder")
        return {name: value for name, value in self.__dict__.items() if name in sent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share()

    @cached_property
    def folder(self) -> Path:
        """Its name follows from the list of files, the form, and all that decides how a file becomes pixels."""
        given = self.config.folder
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        told = to_json([_VERSION, self.form.name, self.origin.rows, self.origin.digest(), decoder_identity()])
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.origin.name)[-40:].strip("-.")
        place = Path(given) if given else cache / "dist-train" / "images"
        return place.absolute() / f"{name}-{self.form.name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    @property
    def taken(self) -> int:
        """Bytes on disk."""
        return sum(blocks_of(self.folder / name) * 512 for name in (PIXELS, INDEX))

    @property
    def counts(self) -> np.ndarray:
        """Of COUNTS, int64; of this process and those forked from it."""
        return self._counts.sum(0)

    def _count(self, what: str, number: int = 1) -> None:
        self._counts[threading.get_native_id() % _COUNTERS, COUNTS.index(what)] += number

    def begun(self) -> np.ndarray:
        """Which rows are there, as it seems, bool [rows]; makes nothing."""
        files = self.open() if (self.folder / INDEX).exists() else None
        return np.zeros(self.origin.rows, dtype=bool) if files is None else files.begun()

    def open(self) -> ImageFiles | None:
        """The files; None where there is no way to have them, which is told once."""
        if self._files is None:
            try:
                files = ImageFiles(self.folder, self.origin.rows, self.form.slot, self.form.size)
                self._files = files
                self._describe(files)
            except OSError as error:
                self._files = False
                self._tell(0, f"images cannot be kept in {self.folder} ({error.strerror}), and are decoded each time")
        return self._files if isinstance(self._files, ImageFiles) else None

    def _describe(self, files: ImageFiles) -> None:
        if not files.is_writable:
            self._tell(0, f"{self.folder} cannot be written: images that are not there are decoded each time")
        elif not (self.folder / META).exists():
            facts = {"images": self.origin.rows, "form": self.form.name, "of": self.origin.name}
            made = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "version": _VERSION}
            said = {"what": "images that dist-train has decoded; may be deleted", **facts, **made}
            with suppress(OSError):
                write_atomic(self.folder / META, to_json({**said, "decoder": decoder_identity()}, indent=2) + "\n")

    def _tell(self, what: int, line: str) -> None:
        """Once. What all ranks of a node meet is told by one of them."""
        if not self._told[what] and (what or Ranks.from_environment().is_first_on_node):
            self._told[what] = 1
            print(f"! data.cache: {line}", file=sys.stderr, flush=True)

    def look(self, source: Source, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Checks those of samples and their rows, int64 [n], that were not read before. Returns the places of those
        that are not there, or not right."""
        new = np.flatnonzero(self._known[rows] == 0)
        files = self.open() if len(new) else None
        return new if files is None else new[~self._are_right(files, source, indices[new], rows[new])]

    def _are_right(self, files: ImageFiles, source: Source, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Which rows hold what decoding would give, bool [n]; from then on these are known. All are checked together,
        and one by one where that fails for one of them."""
        right = np.zeros(len(rows), dtype=bool)
        try:
            records, whole = files.records(rows)
            begun = np.flatnonzero(whole)
            sound = begun[files.are_sound(rows[begun], records[begun])]
            fresh = self._are_fresh(records[sound], source, indices[sound])
        except (OSError, UserError) as error:
            for place in range(len(rows)) if len(rows) > 1 else ():
                right[place] = self._are_right(files, source, indices[[place]], rows[[place]])[0]
            if (
                isinstance(error, OSError) and error.filename is None
            ):  # else the image's file has gone: decoding says so
                self._tell_unreadable(error)
            return right
        self._count("damaged", len(begun) - len(sound))
        if not fresh.all():
            self._count("changed", int((~fresh).sum()))
            self.tell_changed(source.path(int(indices[sound[~fresh][0]])))
        right[sound[fresh]] = True
        self._known[rows[right]] = records["height"][right] << 16 | records["width"][right]
        return right

    def squares(self, rows: np.ndarray) -> Tensor | None:
        """All squares where they lie, uint8 [N, 3, side, side], if those of `rows`, int64 [n], are there and known."""
        there = (self._known[rows] == (self.form.size << 16 | self.form.size)).all()
        files = self.open() if there else None
        found = None if files is None else files.squares()
        if found is not None:
            self._count("read", len(rows))
        return found

    def _tell_unreadable(self, error: OSError) -> None:
        self._tell(1, f"{self.folder} cannot be read ({error.strerror}): decoding instead")

    def tell_changed(self, path: str) -> None:
        self._tell(2, f"{path} has changed since it was decoded: decoded anew, as others that have")

    def gather(self, rows: np.ndarray, out: Tensor) -> np.ndarray:
        """Copies the squares of `rows`, int64 [n], that were checked before, to `out`, uint8 [n, 3, side, side].
        Returns the places of the others."""
        there = self._known[rows] == (self.form.size << 16 | self.form.size)
        files = self.open() if there.any() else None
        if files is None:
            return np.arange(len(rows))
        with suppress(OSError):
            found = out if there.all() else torch.empty(int(there.sum()), *out.shape[1:], dtype=out.dtype)
            if files.gather(rows[there], found):
                if found is not out:
                    out[torch.from_numpy(there)] = found
                self._count("read", len(found))
                return np.flatnonzero(~there)
        return np.arange(len(rows))

    def images(self, source: Source, indices: np.ndarray, rows: np.ndarray) -> Iterator[Tensor]:
        """Those of samples and their rows, int64 [n], that `look` has looked at, as they are used, uint8 [3, h, w]; not
        to be written. Raises UserError.

        Small ones are read, then decoded, then written a few at a time: what a stage needs stays in the processor's
        caches, and each costs two thirds of the time.
        """
        files, some, size = self.open(), list[_Given](), 0
        for index, row in zip(indices.tolist(), rows.tolist(), strict=True):
            found = self._found(files, row)
            encoded = source.encoded(index) if found is None else None
            some.append(_Given(index=index, row=row, found=found, encoded=encoded))
            size += len(encoded[0]) if encoded else 0 if found is None else found.nbytes
            if size > _TOGETHER or len(some) == _MOST_TOGETHER:
                yield from self._used(files, source, some)
                some, size = [], 0
        yield from self._used(files, source, some)

    def _found(self, files: ImageFiles | None, row: int) -> Tensor | None:
        if files is not None and (size := int(self._known[row])):
            try:
                return files.image(row, size >> 16, size & 0xFFFF)
            except OSError as error:
                self._tell_unreadable(error)
        return None

    def _used(self, files: ImageFiles | None, source: Source, some: Sequence["_Given"]) -> Iterator[Tensor]:
        images = [self._decoded(source, one) if one.found is None else one.found for one in some]
        for image, one in zip(images, some, strict=True):
            if one.encoded is not None:
                self._keep(files, one.row, image, *one.encoded)
        decoded = sum(one.found is None for one in some)
        self._count("decoded", decoded)
        self._count("read", len(some) - decoded)
        return map(self.form.used, images)

    def _are_fresh(self, records: np.ndarray, source: Source, indices: np.ndarray) -> np.ndarray:
        """Whether the files of samples are those that were decoded, bool [n]. Raises OSError, or UserError."""
        if self.config.check == "content":
            found = [content_hash(source.encoded(index)[0]) for index in indices.tolist()]
            return np.array(found, dtype="V16") == records["content"]
        stamps = source.stamps(indices)
        return (stamps[:, 0] == records["size"]) & (stamps[:, 1] == records["mtime_ns"])

    def _decoded(self, source: Source, one: "_Given") -> Tensor:
        assert one.encoded is not None
        return self.form.kept(decode_bytes(one.encoded[0], lambda: source.path(one.index)))

    def _keep(
        self, files: ImageFiles | None, row: int, image: Tensor, content: bytes | bytearray, stamp: Stamp
    ) -> None:
        if 0 in image.shape or image.numel() > self.form.slot or max(image.shape) >= 1 << 16:
            self._count("too long")
        elif files is not None and files.is_writable:
            try:
                self._look(files)
                if files.is_writable:
                    files.write(row, image, stamp, content_hash(content))
            except OSError as error:
                self._stop(files, str(error.strerror))

    def _look(self, files: ImageFiles) -> None:
        """Now and then asks whether there is room for more."""
        self._until_look -= 1
        if self._until_look <= 0:
            left, reason = self._room.left(files)
            self._until_look = min(_LOOK_EVERY, left // self.form.slot // 8 + 1)
            if left < self.form.slot:
                self._stop(files, reason)

    def _stop(self, files: ImageFiles, reason: str) -> None:
        files.is_writable = False
        self._tell(3, f"no more images are kept in {self.folder} ({reason}); others are decoded each time")
