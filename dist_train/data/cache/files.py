"""Two files of decoded images, which all processes of a node read and write at the same time, without a lock:

    pixels  a slot of the same size for each row: uint8 [3, height, width]; sparse, so that an empty slot takes no room
    index   a record of 64 bytes for each row, written after its pixels: its size, what it was made from, checksums

What is written for a row is a function of the file that it comes from, so it makes no difference who writes it, or how
often. Who dies between the two writes leaves a row without a record. Nothing is synced: pixels that a power loss took,
and bits that turned, are found by the checksums of record and pixels when a row is first read.
"""

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
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "tmpfs"}
"""File systems that are read through a map. Where a page may go away, as on NFS, a map would end the process (SIGBUS),
and a read says ESTALE or EIO."""


class Stamp(NamedTuple):
    """Size in bytes and time of modification of the file that an image comes from."""

    size: int
    mtime_ns: int


class Record(NamedTuple):
    """What the index says of a row; `content` is the hash of the image's file, 16 bytes."""

    height: int
    width: int
    checksum: int
    stamp: Stamp
    content: bytes

    @classmethod
    def of(cls, packed: bytes, row: int) -> "Record | None":
        """None for what is no whole record of this row."""
        if len(packed) != _RECORD_BYTES:
            return None
        state, height, width, checksum, place, size, mtime_ns, content = _RECORD.unpack_from(packed)
        found = cls(height, width, checksum, Stamp(size, mtime_ns), content)
        return found if (state, place) == (1, row) and found.packed(row) == packed else None

    def packed(self, row: int) -> bytes:
        told = _RECORD.pack(1, self.height, self.width, self.checksum, row, *self.stamp, self.content)
        return (told + zlib.crc32(told).to_bytes(4, "little")).ljust(_RECORD_BYTES, b"\0")


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

    def record(self, row: int) -> Record | None:
        """What is known of a row. Raises OSError."""
        found = Record.of(os.pread(self._index, _RECORD_BYTES, row * _RECORD_BYTES), row)
        return found if found is not None and 3 * found.height * found.width <= self._slot else None

    def begun(self) -> np.ndarray:
        """Rows that seem to have a record, bool [rows], as far as the index can be read."""
        found, step = np.zeros(self._rows, dtype=bool), 1 << 14
        with suppress(OSError):
            for first in range(0, self._rows, step):
                block = os.pread(self._index, min(step, self._rows - first) * _RECORD_BYTES, first * _RECORD_BYTES)
                states = np.frombuffer(block, np.uint8)[::_RECORD_BYTES]
                found[first : first + len(states)] = states != 0
        return found

    def checked(self, row: int, record: Record) -> Tensor | None:
        """The pixels of a row, uint8 [3, h, w], read from the file; None where they are not those of its record.

        Raises:
            OSError: when the disk does not give them.
        """
        image = self._read(row, record.height, record.width)
        return image if image is not None and zlib.crc32(_bytes(image)) == record.checksum else None

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

    def gather(self, rows: np.ndarray, out: Tensor) -> bool:
        """Copies checked squares of the rows, int64 [n], to `out`, uint8 [n, 3, side, side], contiguous. False where
        they cannot be read. Raises OSError."""
        if self._map is not None and self._is_whole():
            side = self._square
            squares = self._map.as_strided((self._rows, 3, side, side), (self._slot, side * side, side, 1))
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
        pixels = _bytes(image.contiguous())
        record = Record(image.shape[1], image.shape[2], zlib.crc32(pixels), stamp, content)
        _write(self._pixels, pixels, row * self._slot)
        _write(self._index, memoryview(record.packed(row)), row * _RECORD_BYTES)


def _bytes(image: Tensor) -> memoryview:
    return memoryview(image.view(-1).numpy())  # type: ignore[arg-type]  # NumPy's stubs do not say that it is a buffer


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
