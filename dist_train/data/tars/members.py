"""The members of a tar file, read from its headers alone: ustar, GNU and pax, as Python's tarfile reads them.

tarfile makes an object of each member, which takes several times longer, and takes a damaged header for the end.
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from dist_train.errors import DataError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MOST = 1 << 20
"""Bytes of the longest extended header."""
_REGULAR, _EMPTY = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
"""Types with content that is a file's, and types that have none whatever their size says: links, folders, devices."""
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22M\x18": "lz4",
}


class Member(NamedTuple):
    """A regular file in a tar: its name, and in bytes of the tar where its headers and its content begin."""

    name: str
    header: int
    start: int
    size: int


def members(file: BinaryIO, path: Path, end: int, at: int = 0) -> Iterator[Member]:
    """Regular files in their order; links, folders and devices are passed over.

    Args:
        path, end: of the file, and its bytes.
        at: where the headers of a member begin.

    Raises:
        UserError: with the place in the file where it is truncated or no tar, or holds a sparse file.
        OSError: when it can't be read.
    """
    if at == 0:
        _refuse_compressed(file, path)
    shared: dict[str, str] = {}
    own: dict[str, str] = {}
    header = at
    while True:
        block = _block(file, path, at, end)
        if block == _ZEROS and not own:
            return
        kind, start = block[156:157], at + BLOCK
        size = _number(block[124:136], path, at)
        if kind in (b"x", b"X", b"g", b"L"):
            if size > _MOST:
                _refuse(path, at, f"is an extended header of {size:,} bytes")
            content = _read(file, path, start, size, end)
            (shared if kind == b"g" else own).update(
                _long_name(content) if kind == b"L" else _records(content, path, at)
            )
            at = start + _whole(size)
            continue
        if kind == b"K":  # where a link leads to
            at = start + _whole(size)
            continue
        settled = {**shared, **own} if own or shared else own
        if kind == b"S" or any(key.startswith("GNU.sparse.") for key in settled):
            _refuse(path, at, "is a sparse file: write the tar without --sparse")
        size = int(settled["size"]) if "size" in settled else size
        name = settled.get("path") or settled.get("long") or _name(block)
        is_folder = kind == b"\0" and name.endswith("/")  # as before ustar
        if kind in _REGULAR and not is_folder:
            if start + size > end:
                _truncated(path, end, f"in {name}, which goes to byte {start + size:,}")
            yield Member(name.rstrip("/") if "path" in settled else name, header, start, size)
        header = at = start + (0 if kind in _EMPTY or is_folder else _whole(size))
        own = {}


def _refuse_compressed(file: BinaryIO, path: Path) -> None:
    begin = file.read(8)
    if kinds := [name for magic, name in _COMPRESSED.items() if begin.startswith(magic)]:
        raise DataError(f"{path} is compressed ({kinds[0]}), and can't be read at random: unpack it to .tar")


def _block(file: BinaryIO, path: Path, at: int, end: int) -> bytes:
    """A header whose sum is right, or zeros."""
    block = _read(file, path, at, BLOCK, end)
    if block == _ZEROS:
        return block
    try:
        told = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        told = -1
    # The sum of all bytes, those of the sum itself taken as blanks: Adler's first half is one more, modulo 65,521.
    if told < 0 or zlib.adler32(block) & 0xFFFF != (1 + told - 8 * 32 + sum(block[148:156])) % 65521:
        _refuse(path, at, "is no header of a tar: the file is damaged, or no tar" if at else "is no header of a tar")
    return block


def _read(file: BinaryIO, path: Path, at: int, size: int, end: int) -> bytes:
    file.seek(at)  # within what is buffered it costs nothing
    content = file.read(size)
    if len(content) < size:
        _truncated(path, end, "where a header or the two empty blocks of a tar's end should be")
    return content


def _number(field: bytes, path: Path, at: int) -> int:
    """Octal digits, or GNU's binary form of what is too large for them."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-7]*", digits):
        _refuse(path, at, f"is a header with the size {field!r}")
    return int(digits or b"0", 8)


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="surrogateescape")


def _long_name(content: bytes) -> dict[str, str]:
    return {"long": content.partition(b"\0")[0].decode(errors="surrogateescape")}


def _records(content: bytes, path: Path, at: int) -> dict[str, str]:
    """The records of a pax header that matter here: `<length> <key>=<value>\\n`."""
    if not re.search(rb" (path|size|GNU\.sparse\.\w+)=", content):
        return {}
    found, place = {}, 0
    while match := re.compile(rb"(\d{1,20}) ([^=]+)=").match(content, place):
        length = int(match[1])
        value = content[match.end() : place + length - 1]
        if length < len(match[0]) + 1 or place + length > len(content):
            _refuse(path, at, "is a damaged pax header")
        found[match[2].decode(errors="replace")] = value.decode(errors="surrogateescape")
        place += length
    if not found.get("size", "0").isdigit():
        _refuse(path, at, f"is a pax header with the size {found['size']!r}")
    return {key: value for key, value in found.items() if key in ("path", "size") or key.startswith("GNU.sparse.")}


def _whole(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _truncated(path: Path, end: int, what: str) -> NoReturn:
    raise DataError(f"{path} is truncated: it ends at byte {end:,}, {what}")


def _refuse(path: Path, at: int, what: str) -> NoReturn:
    raise DataError(f"{path}: what begins at byte {at:,} {what}")
