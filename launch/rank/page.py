"""A page of memory for each rank of a node, which the supervisor reads: no file system can freeze, fill or lose it.

The supervisor has one memory file (memfd_create(2)), with a page for each of its ranks and one for the agent. A process
of the node opens it by way of the supervisor's descriptor. A page holds the heartbeat (heartbeat.py), the newest
collectives (collectives.py), what the rank says of itself, and how it ended.

main.py loads this file by its path: it imports the standard library alone.
"""

import json
import mmap
import os
import resource
from typing import Any

SIZE = 2**20
"""Bytes of a page; those that nobody writes to cost nothing."""
FACTS, ERROR = (4096, 2**16), (2**16, SIZE)
"""Where a record begins and ends: who the rank is and how it has ended, and the exception that ended it."""
_LENGTH = 8
_LONGEST_TEXT = 100_000
"""Characters of each text of a record that would not fit."""


class Page:
    """One page, for the process that writes to it. Where there is no supervisor it is nobody else's.

    Args:
        path: of the memory file.
        number: of the page in it.
    """

    def __init__(self, path: str, number: int) -> None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self.memory = mmap.mmap(-1, SIZE)
            return
        self.memory = mmap.mmap(descriptor, SIZE, offset=number * SIZE)
        os.close(descriptor)

    def put(self, where: tuple[int, int], record: dict[str, Any]) -> None:
        """Replaces a record. Long texts are cut to their ends where it would not fit."""
        begin, end = where
        text = json.dumps(record, default=str).encode()
        if len(text) > end - begin - _LENGTH:
            short = {key: value[-_LONGEST_TEXT:] if isinstance(value, str) else value for key, value in record.items()}
            text = json.dumps(short | {"frames": [], "chain": []}, default=str).encode()[: end - begin - _LENGTH]
        self.memory[begin : begin + _LENGTH] = bytes(_LENGTH)
        self.memory[begin + _LENGTH : begin + _LENGTH + len(text)] = text
        self.memory[begin : begin + _LENGTH] = len(text).to_bytes(_LENGTH, "little")


class Pages:
    """All pages of a node, for the supervisor.

    Args:
        count: how many.

    Raises:
        OSError: there is no memory for it, or the hard limit on the size of files, which counts here, forbids it.
    """

    def __init__(self, count: int) -> None:
        self._file = os.memfd_create("dist-train-ranks", os.MFD_CLOEXEC)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # `ulimit -f` is meant for files on disks
        try:
            os.ftruncate(self._file, count * SIZE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.count, self.path = count, f"/proc/{os.getpid()}/fd/{self._file}"

    def head(self, number: int) -> bytes:
        """Heartbeat and collectives."""
        return os.pread(self._file, FACTS[0], number * SIZE)

    def get(self, number: int, where: tuple[int, int]) -> Any:
        """A record; None where there is none yet."""
        begin = number * SIZE + where[0]
        length = int.from_bytes(os.pread(self._file, _LENGTH, begin), "little")
        try:
            return json.loads(os.pread(self._file, length, begin + _LENGTH)) if length else None
        except ValueError:  # it is being written
            return None

    def close(self) -> None:
        os.close(self._file)
