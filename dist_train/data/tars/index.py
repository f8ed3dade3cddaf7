"""What is known of a tar of samples: where its members are, sample by sample. Found once, and kept in a file.

A sample is the members whose names are the same up to the first dot of the last part: `n01/03.jpg` and `n01/03.cls` are
the sample `n01/03`, with the extensions `jpg` and `cls`. The file of an index is a line of JSON, then two tables. It
goes with the tar's size, time of modification and first bytes; a tar that has changed is indexed anew.
"""

import hashlib
import json
import mmap
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dist_train.data.tars.members import members
from dist_train.errors import DataError
from dist_train.rundir.files import write_atomic

_VERSION = 1
_HEAD = 4096
"""First bytes of a tar that must be the same."""
_BUFFER = 1 << 15
"""Bytes that are read at once while headers are looked for: more would be read in vain between large members."""
_LONGEST = 1 << 24
"""Bytes of the line of JSON."""
_SAMPLE = np.dtype([("first", "<i8"), ("kind", "<i8")])
"""A sample's first row in the table of members, and its number among the kinds."""
_MEMBER = np.dtype([("header", "<i8"), ("start", "<i8"), ("size", "<i8")])
_META = re.compile(r"__[^/]*__($|/)")
"""Members that WebDataset takes for no sample's."""
Kind = tuple[str, ...]
"""The extensions that a sample has, sorted."""


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """The index of one tar; its tables stay in their file.

    Attributes:
        tar, place: the tar, and the file of the index.
        size, mtime_ns: of the tar.
        line: the first line of the index, by which the file is known again.
        kinds: the kinds of samples in it, and how many there are of each.
        samples, members: how many there are.
        digest: of the names, places and sizes of all members, and of the tar's first bytes.
    """

    tar: Path
    place: Path
    line: bytes
    size: int
    mtime_ns: int
    kinds: tuple[tuple[Kind, int], ...]
    samples: int
    members: int
    digest: str

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return len(self.line) + self.samples * _SAMPLE.itemsize + self.members * _MEMBER.itemsize

    def mapped(self) -> "Tables":
        """Maps the tables into memory.

        Raises:
            UserError: when the file is another one by now.
            OSError: when it can't be read.
        """
        with open(self.place, "rb", buffering=0) as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(memory) != self.length or memory[: len(self.line)] != self.line:
            raise DataError(f"the index {self.place} has changed since the start: start again")
        places = np.frombuffer(memory, _MEMBER, self.members, len(self.line) + self.samples * _SAMPLE.itemsize)
        return Tables(samples=np.frombuffer(memory, _SAMPLE, self.samples, len(self.line)), members=places)


@dataclass(frozen=True, kw_only=True)
class Tables:
    samples: np.ndarray
    members: np.ndarray

    def of(self, row: int, kinds: tuple[tuple[Kind, int], ...]) -> dict[str, tuple[int, int, int]]:
        """Of a sample: (header, start, size) by extension."""
        first, kind = self.samples[row].item()
        extensions = kinds[kind][0]
        return dict(zip(extensions, self.members[first : first + len(extensions)].tolist(), strict=True))


def index_of(tar: Path, folder: Path | None) -> tuple[TarIndex, bool]:
    """The index of a tar, and whether it was made now.

    Args:
        folder: where it is kept; None for beside the tar, or in the user's cache where that can't be written.

    Raises:
        UserError: when the tar can't be read or indexed, or the index be kept.
    """
    try:
        size, mtime_ns, head = _begin(tar, _HEAD)
        key = {"version": _VERSION, "size": size, "mtime_ns": mtime_ns, "head": hashlib.sha256(head).hexdigest()[:16]}
        for place in _places(tar, folder):
            if (kept := _kept(tar, place, key)) is not None:
                return kept, False
        with open(tar, "rb", buffering=_BUFFER) as file:
            line, tables = _made(file, tar, key)
    except OSError as error:
        raise DataError(f"cannot read the tar {tar}: {error.strerror}") from error
    return _written(tar, [*_places(tar, folder)], line, tables), True


def key_at(tar: Path, header: int) -> str:
    """The name of the sample whose member begins there."""
    with open(tar, "rb") as file:
        member = next(members(file, tar, os.fstat(file.fileno()).st_size, header))
    return (_split(member.name) or (member.name, ""))[0]


def _begin(path: Path, most: int) -> tuple[int, int, bytes]:
    """Size, time of modification and first bytes of a file. For many files `open` would cost twice as much."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        return found.st_size, found.st_mtime_ns, os.pread(descriptor, most, 0)
    finally:
        os.close(descriptor)


def _kept(tar: Path, place: Path, key: dict[str, Any]) -> TarIndex | None:
    """The index in the file `place`, if it is whole and this tar's."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        size, _, begin = _begin(place, _HEAD)
        if b"\n" not in begin:
            begin = _begin(place, _LONGEST)[2]
        line = begin[: begin.index(b"\n") + 1]
        content = json.loads(line)
        if all(content[name] == value for name, value in key.items()):
            found = _index(tar, place, line, content)
            return found if size == found.length else None
    return None


def _index(tar: Path, place: Path, line: bytes, content: dict[str, Any]) -> TarIndex:
    kinds = tuple((tuple(kind), int(count)) for kind, count in content["kinds"])
    facts = {name: content[name] for name in ("size", "mtime_ns", "digest")}
    samples, count = sum(count for _, count in kinds), sum(count * len(kind) for kind, count in kinds)
    return TarIndex(tar=tar, place=place, line=line, kinds=kinds, samples=samples, members=count, **facts)


def _made(file: BinaryIO, tar: Path, key: dict[str, Any]) -> tuple[bytes, bytes]:
    """The line and the tables of a tar."""
    samples: dict[str, int] = {}
    extensions: dict[str, int] = {}
    rows = array("q")
    names = hashlib.sha256(key["head"].encode())
    for member in members(file, tar, key["size"]):
        if (split := _split(member.name)) is not None:
            sample = samples.setdefault(split[0], len(samples))
            extension = extensions.setdefault(split[1], len(extensions))
            rows.extend((sample, extension, *member[1:]))
            names.update(member.name.encode(errors="surrogateescape") + b"\0")
    if not rows:
        raise DataError(f"{tar} holds no sample: no file with a name such as 0001.jpg")
    in_order = sorted(extensions)
    rank = np.empty(len(in_order), dtype=np.int64)
    rank[[extensions[name] for name in in_order]] = np.arange(len(in_order))
    table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 5).copy()
    table[:, 1] = rank[table[:, 1]]
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    _refuse_twice(tar, table, in_order)
    firsts = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
    kinds: Counter[tuple[int, ...]] = Counter()
    numbers: dict[tuple[int, ...], int] = {}
    of_sample = np.empty((len(firsts), 2), dtype="<i8")
    of_sample[:, 0] = firsts
    column = table[:, 1].tolist()
    for sample, (first, last) in enumerate(zip(firsts.tolist(), [*firsts[1:].tolist(), len(column)], strict=True)):
        kind = tuple(column[first:last])
        of_sample[sample, 1] = numbers.setdefault(kind, len(numbers))
        kinds[kind] += 1
    tables = of_sample.tobytes() + table[:, 2:].astype("<i8").tobytes()
    names.update(tables)
    counts = [[[in_order[number] for number in kind], kinds[kind]] for kind in numbers]
    line = json.dumps({**key, "kinds": counts, "digest": names.hexdigest()[:16]}) + "\n"
    return line.encode(), tables


def _refuse_twice(tar: Path, table: np.ndarray, extensions: list[str]) -> None:
    twice = np.flatnonzero((np.diff(table[:, 0]) == 0) & (np.diff(table[:, 1]) == 0))
    if len(twice):
        _, extension, header, _, _ = table[twice[0] + 1].tolist()
        raise DataError(
            f"{tar} has two members {key_at(tar, header)}.{extensions[extension]}, the second at byte {header:,}: a "
            "sample's name, up to its first dot, may stand in a tar once"
        )


def _split(name: str) -> tuple[str, str] | None:
    """A sample's name and the extension, as WebDataset splits them; None for what belongs to no sample."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot and not _META.match(name) else None


def _places(tar: Path, folder: Path | None) -> Iterator[Path]:
    """Where the index may be, one after the other."""
    if folder is None:
        yield tar.parent / f".{tar.name}.index"
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (cache if cache.is_absolute() else Path(os.path.expanduser("~"), ".cache")) / "dist-train" / "shards"
    yield folder / f"{hashlib.sha256(os.fsencode(tar.absolute())).hexdigest()[:16]}-{tar.name}.index"


def _written(tar: Path, places: list[Path], line: bytes, tables: bytes) -> TarIndex:
    """Writes an index where it can be written first."""
    reasons = []
    for place in places:
        try:
            if place.parent != tar.parent:
                place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, line + tables)
            return _index(tar, place, line, json.loads(line))
        except OSError as error:
            reasons.append(f"{place.parent} ({error.strerror})")
    raise DataError(
        f"the index of {tar} can be kept neither in {' nor in '.join(reasons)}: set data.index_folder to a folder that "
        "can be written"
    )
