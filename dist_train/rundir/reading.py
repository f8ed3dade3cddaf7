"""Reading files that anybody may have made: regular ones of a sensible size, and JSON that a run's files may hold. It
never waits for a pipe, never follows a device without end, and never fails in another way than it says. No torch here.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_JSON = 4 * 2**20
"""Bytes of a manifest or of a state: far more than any that was written."""
_SPARSE = 2**30
"""Bytes from which on a file that is nearly all hole is taken for no content: to read it would take minutes."""


class Odd(OSError):
    """A file that is no plain content. `strerror` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


def open_regular(path: Path, *, links: bool = True) -> int:
    """A descriptor of a regular file, to read from.

    Args:
        links: whether `path` may be a link to one.

    Raises:
        OSError: when it is none, or cannot be opened.
    """
    try:
        found = os.stat(path, follow_symlinks=links)
    except ValueError:  # a zero byte in the name
        raise Odd(path, "no name of a file") from None
    if not stat.S_ISREG(found.st_mode):  # before it is opened: opening a device may do something
        raise Odd(path, "not a regular file")
    no_links = 0 if links else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | no_links)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Odd(path, "not a regular file")
    return descriptor


def read_bytes(path: Path, most: int, *, links: bool = True) -> bytes:
    """The whole of a regular file of at most `most` bytes.

    Raises:
        OSError: when it is none, or cannot be read.
    """
    with os.fdopen(open_regular(path, links=links), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Odd(path, f"larger than {most:,} bytes")
    return content


def parse_json(content: bytes | str) -> Any:
    """What JSON says.

    Raises:
        ValueError: also when it is nested too deep, or a number in it too long.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path, most: int = MAX_JSON) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is no JSON.
    """
    return parse_json(read_bytes(path, most))


def is_hollow(descriptor: int) -> bool:
    """Whether a large file is nearly nothing but a hole."""
    found = os.fstat(descriptor)
    if found.st_size < _SPARSE or found.st_blocks * 512 > found.st_size // 1000:
        return False
    return os.lseek(descriptor, 0, os.SEEK_HOLE) < found.st_size  # some file systems count no blocks


def is_number(value: Any, low: float = 0, high: float = 2**63) -> bool:
    """Whether a value from JSON is a whole number between the two."""
    return type(value) is int and low <= value < high


def numbered(folder: Path) -> list[Path]:
    """What in a folder has a number for a name, the lowest first: the generations of a run."""
    try:
        names = [name for name in os.listdir(folder) if name.isascii() and name.isdigit() and len(name) < 10]
    except OSError:
        return []
    return [folder / name for name in sorted(names, key=int)]
