"""Two files of decoded images, which all processes of a node read and write at the same time, without a lock:

    pixels  a slot of the same size for each row: uint8 [3, height, width]; sparse, so that an empty slot takes no room
    index   a record of 64 bytes for each row, written after its pixels: its size, what it was made from, checksums

What is written for a row is a function of the file that it comes from, so it makes no difference who writes it, or how
often. Who dies between the two writes leaves a row without a record. Nothing is synced: pixels that a power loss took,
and bits that turned, are found by the checksums of record and pixels when a row is first read.
"""

import hashlib
import mmap
import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PIXELS, INDEX = "pixels", "index"
_PAGE = 4096
_RECORD = struct.Struct("<IIIIqqq16s")
"""1, height, width, CRC-32 of the pixels; row, size and mtime_ns of the origin; the hash of its bytes."""
_RECORD_BYTES = 64
"""A checksum of what comes before, and zeros, fill it up."""
_FIELDS = {"state": "<u4", "height": "<u4", "width": "<u4", "checksum": "<u4", "row": "<i8", "size": "<i8"}
RECORDS = np.dtype([*{**_FIELDS, "mtime_ns": "<i8", "content": "V16", "own": "<u4", "zeros": "<u4"}.items()])
"""The same, of many at once."""
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "tmpfs"}
"""File systems that are read through a map. Where a page may go away, as on NFS, a map would end the process (SIGBUS),
and a read says ESTALE or EIO."""


class Stamp(NamedTuple):
    """Size in bytes and time of modification of the file that an image comes from."""

    size: int
    mtime_ns: int


def slot_of(height: int, width: int) -> int:
    """Bytes of a slot for images of so many pixels: whole pages, so that no two rows share one."""
    return -(-3 * height * width // _PAGE) * _PAGE


class ImageFiles:
    """The files of a folder, open in one process; any number of its threads may use them.

    Attributes:
        is_writable: whether they can be written; others may be read.

    Args:
        rows, slot: so many slots of so many bytes.
        square: the side of the images that `gather` copies.

    Raises:
        OSError: when they can neither be made nor read.
    """

    def __init__(self, folder: Path, rows: int, slot: int, square: int) -> None:
        self._rows, self._slot, self._square = rows, slot, square
        self._descriptors: list[int] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open(folder, os.O_RDWR | os.O_CREAT)
            for descriptor, size in zip(self._descriptors, (rows * slot, rows * _RECORD_BYTES), strict=True):
                if os.fstat(descriptor).st_size < size:
                    os.ftruncate(descriptor, size)
            self.is_writable = True
        except OSError:
            self._close()
            if not (folder / INDEX).exists():
                raise
            self._open(folder, os.O_RDONLY)
            self.is_writable = False
        self._pixels, self._index = self._descriptors
        self._map: Tensor | None = None
        if rows and self._is_whole() and _is_local(self._pixels):
            memory = mmap.mmap(self._pixels, rows * slot, prot=mmap.PROT_READ)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it cannot be written; nobody does
                self._map = torch.frombuffer(memory, dtype=torch.uint8)

    def _open(self, folder: Path, flags: int) -> None:
        for name in (PIXELS, INDEX):
            self._descriptors.append(os.open(folder / name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666))

    def _close(self) -> None:
        while self._descriptors:
            with suppress(OSError):
                os.close(self._descriptors.pop())

    def __del__(self) -> None:
        self._close()

    def _is_whole(self) -> bool:
        """Whether each slot is in the file: behind its end a map would end the process."""
        return os.fstat(self._pixels).st_size >= self._rows * self._slot

    def free(self) -> tuple[int, int]:
        """Bytes of the file system: free for us, and all."""
        found = os.fstatvfs(self._pixels)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def records(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is known of rows, int64 [n]: RECORDS [n], and bool [n], which of them are whole records of their rows.
        Raises OSError."""
        memory = bytearray(len(rows) * _RECORD_BYTES)
        views = [memoryview(memory)[at : at + _RECORD_BYTES] for at in range(0, len(memory), _RECORD_BYTES)]
        for view, row in zip(views, rows.tolist(), strict=True):
            os.preadv(self._index, [view], row * _RECORD_BYTES)
        found = np.frombuffer(memory, RECORDS)
        pixels = 3 * found["height"].astype(np.int64) * found["width"]
        whole = (found["state"] == 1) & (found["row"] == rows) & (found["zeros"] == 0) & (pixels <= self._slot)
        own = [zlib.crc32(view[: _RECORD.size]) for view in views]
        return found, whole & (found["own"] == np.array(own, dtype=np.uint32))

    def are_sound(self, rows: np.ndarray, records: np.ndarray) -> np.ndarray:
        """Which rows, int64 [n], have in the file the pixels of their RECORDS [n]: bool [n]. Raises OSError."""
        memory, found = memoryview(bytearray(self._slot)), []
        sizes = 3 * records["height"].astype(np.int64) * records["width"]
        for row, size, checksum in zip(rows.tolist(), sizes.tolist(), records["checksum"].tolist(), strict=True):
            part = memory[:size]
            is_whole = size == 0 or os.preadv(self._pixels, [part], row * self._slot) == size
            found.append(is_whole and zlib.crc32(part) == checksum)
        return np.array(found, dtype=bool)

    def begun(self) -> np.ndarray:
        """Rows that seem to have a record, bool [rows], as far as the index can be read."""
        found, step = np.zeros(self._rows, dtype=bool), 1 << 14
        with suppress(OSError):
            for first in range(0, self._rows, step):
                block = os.pread(self._index, min(step, self._rows - first) * _RECORD_BYTES, first * _RECORD_BYTES)
                states = np.frombuffer(block, np.uint8)[::_RECORD_BYTES]
                found[first : first + len(states)] = states != 0
        return found

    def image(self, row: int, height: int, width: int) -> Tensor | None:
        """The pixels of a row that has been checked. Not to be written: it may be the file itself. Raises OSError."""
        if self._map is None or not self._is_whole():
            return self._read(row, height, width)
        first = row * self._slot
        return self._map[first : first + 3 * height * width].view(3, height, width)

    def _read(self, row: int, height: int, width: int) -> Tensor | None:
        image = torch.empty(3, height, width, dtype=torch.uint8)
        count = os.preadv(self._pixels, [_bytes(image)], row * self._slot) if image.numel() else 0
        return image if count == image.numel() else None

    def squares(self) -> Tensor | None:
        """All rows as squares where they lie, uint8 [N, 3, side, side], not to be written; None without a map."""
        if self._map is None or not self._is_whole():
            return None
        side = self._square
        return self._map.as_strided((self._rows, 3, side, side), (self._slot, side * side, side, 1))

    def gather(self, rows: np.ndarray, out: Tensor) -> bool:
        """Copies checked squares of the rows, int64 [n], to `out`, uint8 [n, 3, side, side], contiguous. False where
        they cannot be read. Raises OSError."""
        if (squares := self.squares()) is not None:
            torch.index_select(squares, 0, torch.from_numpy(rows), out=out)
            return True
        size, memory = 3 * self._square**2, _bytes(out)
        return all(
            os.preadv(self._pixels, [memory[place * size : (place + 1) * size]], row * self._slot) == size
            for place, row in enumerate(rows.tolist())
        )

    def write(self, row: int, image: Tensor, stamp: Stamp, content: bytes) -> None:
        """Adds a row: uint8 [3, h, w] of no more bytes than a slot has.

        Raises:
            OSError: when the disk does not take it.
        """
        pixels = _bytes(image)
        told = _RECORD.pack(1, *image.shape[1:], zlib.crc32(pixels), row, *stamp, content)
        record = (told + zlib.crc32(told).to_bytes(4, "little")).ljust(_RECORD_BYTES, b"\0")
        _write(self._pixels, pixels, row * self._slot)
        _write(self._index, memoryview(record), row * _RECORD_BYTES)


def _bytes(image: Tensor) -> memoryview:
    """Its own memory where it is contiguous, else a copy, which takes NumPy half as long as torch."""
    array = np.ascontiguousarray(image.numpy())
    return memoryview(array).cast("B")  # type: ignore[arg-type]  # NumPy's stubs do not say that it is a buffer


def _write(descriptor: int, content: memoryview, at: int) -> None:
    while content:
        count = os.pwrite(descriptor, content, at)
        content, at = content[count:], at + count


def _is_local(descriptor: int) -> bool:
    """Whether a file is on a disk of this machine, as far as the kernel tells."""
    device = os.fstat(descriptor).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError), open("/proc/self/mountinfo") as mounts:
        for fields in map(str.split, mounts):
            if fields[2] == wanted:
                return fields[fields.index("-") + 1] in _LOCAL
    return False


def blocks_of(path: Path) -> int:
    """Of 512 bytes, on disk."""
    with suppress(OSError):
        return os.stat(path).st_blocks
    return 0


def content_hash(content: bytes | bytearray) -> bytes:
    """16 bytes that tell files apart."""
    return hashlib.sha256(content).digest()[:16]
