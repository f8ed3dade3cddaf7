"""What happens in a folder, told by the kernel as it happens: inotify(7)."""

import ctypes
import os
import struct
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

MODIFIED, MOVED_HERE, CREATED = 0x2, 0x80, 0x100
_EVENT = struct.Struct("iIII")


class Watch:
    """Collects (kind, name) of what is created in, moved in, or changed in `folder`, while it is open."""

    def __init__(self, folder: Path, kinds: int = CREATED | MOVED_HERE) -> None:
        self.folder, self._kinds = folder, kinds
        self._seen: list[tuple[int, str]] = []

    def __enter__(self) -> "Watch":
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if libc.inotify_add_watch(self._descriptor, os.fsencode(self.folder), self._kinds) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {self.folder}")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def seen(self) -> list[tuple[int, str]]:
        """Everything so far, oldest first."""
        while True:
            try:
                content = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return self._seen
            at = 0
            while at < len(content):
                _, mask, _, length = _EVENT.unpack_from(content, at)
                name = content[at + _EVENT.size :][:length].rstrip(b"\0")
                self._seen.append((mask & (MODIFIED | MOVED_HERE | CREATED), os.fsdecode(name)))
                at += _EVENT.size + length

    def count(self, kind: int, prefix: str) -> int:
        return sum(1 for seen, name in self.seen() if seen & kind and name.startswith(prefix))

    def wait_for(self, kind: int, prefix: str, number: int, others: Sequence[Any], seconds: float) -> bool:
        """Whether the event came for the `number`th time, before one of `others` got ready and the time was over."""
        deadline = time.monotonic() + seconds
        while self.count(kind, prefix) < number:
            left = deadline - time.monotonic()
            ready = wait([self, *others], max(0.0, left))
            if any(other in ready for other in others) or left <= 0:
                return self.count(kind, prefix) >= number
        return True
