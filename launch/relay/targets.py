"""Where output goes: files that stay below a size, and a console that may be slow, stuck or gone."""

import contextlib
import os
import select
import threading
import time
from pathlib import Path

from .lines import Lines

WAITING = 1 << 20
"""Bytes that may wait for a slow console; what comes on top of them is dropped."""
PIECE = 4096
"""Bytes that are written to a console at once: a pipe does not mix them with what others write."""


class LogFile:
    """Is appended to; at its limit it becomes `NAME.1` in place of the one before. A full disk takes what it can.

    Others may append to it too: the size is asked for, not counted.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._open()

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        with contextlib.suppress(OSError):
            while data:
                data = data[self._write_part(data) :]

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self._file

    def _write_part(self, data: bytes) -> int:
        """Appends the lines that there is room for, or makes room. Returns the number of bytes written."""
        file = self._open()
        size = os.fstat(file).st_size
        room = self._limit - size
        if len(data) <= room:
            return os.write(file, data)
        whole = data.rfind(b"\n", 0, max(0, room)) + 1
        if whole or size == 0:
            return os.write(file, data[: whole or room])
        self.close()
        os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
        return 0


class Console:
    """A terminal, pipe or file of the launcher's. A thread waits for it, so that nobody else does."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.is_terminal = os.isatty(file)
        self._waiting = bytearray()
        self._dropped = 0
        self._open_line = b""
        """What the rank that writes as it likes has left without an end: a progress bar."""
        self._is_gone = False
        self._changed = threading.Condition()
        threading.Thread(target=self._write_all, name="console", daemon=True).start()

    def write(self, data: bytes) -> None:
        """Passes on what a rank that has the console writes, as it is."""
        self._open_line = (self._open_line + data).rpartition(b"\n")[2][-PIECE:]
        self._put(data)

    def write_lines(self, text: str, prefix: str = "") -> None:
        """Whole lines, each behind the prefix; an open line of the rank that has the console is drawn again below."""
        lines = text.removesuffix("\n").split("\n")
        data = "".join(f"{prefix}{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        if self._open_line:
            before = b"\r\x1b[K" if self.is_terminal else b"\n"
            again = self._open_line[max(0, self._open_line.rfind(b"\r")) :]
            data = before + data + again
        self._put(data)

    def end_line(self) -> None:
        """What follows on a terminal begins a line of its own, also below a progress bar that somebody left there."""
        left: list[str] = []
        lines = Lines(left.append)
        lines.feed(self._open_line)
        lines.close()
        if left and self.is_terminal:
            self._put(b"\n")
        self._open_line = b""

    def drain(self, stuck_s: float, slow_s: float) -> None:
        """Waits until all is written, or nothing has been for `stuck_s` seconds, or `slow_s` seconds have passed."""
        end = time.monotonic() + slow_s
        with self._changed:
            while self._waiting and (left := end - time.monotonic()) > 0:
                if not self._changed.wait(min(stuck_s, left)):
                    return

    def _put(self, data: bytes) -> None:
        with self._changed:
            if self._is_gone:
                return
            if len(self._waiting) + len(data) > WAITING:
                self._dropped += max(1, data.count(b"\n"))
                return
            if self._dropped:
                self._waiting += (
                    f"\n({self._dropped:,} lines left out: nobody read them; they are in the log)\n".encode()
                )
                self._dropped = 0
            self._waiting += data
            self._changed.notify_all()

    def _write_all(self) -> None:
        written: int | None
        while not self._is_gone:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                whole = self._waiting.rfind(b"\n", 0, PIECE) + 1
                data = bytes(self._waiting[: whole or PIECE])
            try:
                written = os.write(self.file, data)
            except BlockingIOError:  # somebody has made our console so
                select.select([], [self.file], [])
                continue
            except OSError:  # a closed terminal or pipe
                self._is_gone, written = True, None  # all that waits
            with self._changed:
                del self._waiting[:written]
                self._changed.notify_all()
