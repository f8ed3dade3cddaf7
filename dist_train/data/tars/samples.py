"""The samples of many tars by number, read at any place in any order; what is open at once is bounded."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from dist_train.data.tars.index import Tables, TarIndex, key_at
from dist_train.errors import DataError, UserError

_MOST_OPEN = 128
"""Tars that are open at once in a process. Each takes two descriptors, its own and its index's."""
_GAP = 1 << 16
"""Bytes between the members of a sample that are rather read than left out: one read costs less than two."""


class TarSamples:
    """The samples that have what is wanted, of all tars in their order.

    Attributes:
        left_out: how many samples of which tars have it not.
    """

    def __init__(self, tars: Sequence[TarIndex], wanted: Sequence[Collection[str]] = ()) -> None:
        """
        Args:
            wanted: groups of extensions; a sample must have one of each group.

        Raises:
            UserError: when a tar has no such sample.
        """
        self._tars, self._rows = list(tars), [_rows(tar, wanted) for tar in tars]
        sizes = [tar.samples if rows is None else len(rows) for tar, rows in zip(self._tars, self._rows, strict=True)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.left_out = {
            tar.tar: tar.samples - size for tar, size in zip(tars, sizes, strict=True) if size < tar.samples
        }
        self._open: OrderedDict[int, _OpenTar] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, index: int, wanted: Collection[str] | None = None) -> dict[str, bytearray]:
        """The members of a sample by extension: those that are `wanted`, or all.

        Raises:
            UserError: naming the sample, when the tar can't be read, or has changed since it was indexed.
        """
        number, row = self._place(index)
        tar = self._tars[number]
        try:
            opened = self._opened(number)
            found = opened.tables.of(row, tar.kinds)
            places = {name: (at, size) for name, (_, at, size) in found.items() if wanted is None or name in wanted}
            return _read(opened.descriptor, places)
        except (OSError, EOFError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"cannot read {self.name(index)}: {reason}") from error

    def name(self, index: int) -> str:
        """`folder/images-007.tar!n01/0003`."""
        number, row = self._place(index)
        tar = self._tars[number]
        try:
            headers = self._opened(number).tables.of(row, tar.kinds)
            return f"{tar.tar}!{key_at(tar.tar, min(headers.values())[0])}"
        except (OSError, UserError, StopIteration):
            return f"{tar.tar}, sample {row:,}"

    def stamp(self, index: int) -> tuple[int, int]:
        """Size and time of modification of a sample's tar."""
        tar = self._tars[self._place(index)[0]]
        return tar.size, tar.mtime_ns

    def fingerprint(self) -> str:
        """Of the names, sizes and first bytes of all tars, and of the names, places and sizes of all members."""
        found = hashlib.sha256()
        for tar in self._tars:
            found.update(f"{tar.tar.name} {tar.size} {tar.digest}\n".encode(errors="surrogateescape"))
        return found.hexdigest()[:12]

    def _place(self, index: int) -> tuple[int, int]:
        """Which tar, and which of its samples."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        row, rows = index - (int(self._ends[number - 1]) if number else 0), self._rows[number]
        return number, row if rows is None else int(rows[row])

    def _opened(self, number: int) -> "_OpenTar":
        """Any number of threads may ask: a tar that falls out of the table stays open for whoever reads it."""
        opened = self._open.get(number) or _OpenTar(self._tars[number])
        self._open[number] = opened
        with suppress(KeyError):  # another thread has taken it out
            self._open.move_to_end(number)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return opened


class _OpenTar:
    """A tar and its tables. Raises UserError when it has changed since it was indexed."""

    def __init__(self, tar: TarIndex) -> None:
        self.tables: Tables = tar.mapped()
        self.descriptor = os.open(tar.tar, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self.descriptor)
        if (found.st_size, found.st_mtime_ns) != (tar.size, tar.mtime_ns):
            raise DataError(f"{tar.tar} has changed since it was indexed: start again")

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self.descriptor)


def _rows(tar: TarIndex, wanted: Sequence[Collection[str]]) -> np.ndarray | None:
    """The samples that have one of each; None for all."""
    fit = [all(any(name in kind for name in group) for group in wanted) for kind, _ in tar.kinds]
    if all(fit):
        return None
    if not any(fit):
        has = sorted({name for kind, _ in tar.kinds for name in kind})
        some = " ".join(f".{name}" for name in has[:8]) + " …" * (len(has) > 8)
        need = " and ".join(f".{' or .'.join(group)}" for group in wanted)
        raise DataError(
            f"{tar.tar} has no sample with {need}: its members end in {some} (from the first dot of a name on); set "
            "data.image and data.target to them"
        )
    return np.flatnonzero(np.array(fit)[tar.mapped().samples["kind"]])


def _read(descriptor: int, places: dict[str, tuple[int, int]]) -> dict[str, bytearray]:
    """The bytes at these (start, size); at once where they lie close together."""
    first, last = min(at for at, _ in places.values()), max(at + size for at, size in places.values())
    if len(places) < 2 or last - first > sum(size for _, size in places.values()) + _GAP:
        return {name: _bytes(descriptor, *place) for name, place in places.items()}
    content = _bytes(descriptor, first, last - first)
    return {name: content[at - first : at - first + size] for name, (at, size) in places.items()}


def _bytes(descriptor: int, at: int, size: int) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = os.preadv(descriptor, [view], at + size - len(view))
        if not count:
            raise EOFError(f"the tar ends at byte {at + size - len(view):,}, before the sample does")
        view = view[count:]
    return content
