"""Writing to stderr so that a slow or missing reader cannot stop a training."""

import contextlib
import os
import select
from typing import TextIO

from dist_train.config.stdout import drop
from dist_train.tracking.formatting import ascii_only

READER_TIMEOUT_S = 1.0
"""How long a line waits for a reader that does not read (`| less`, Ctrl-S) before it is dropped."""


class LossyStream:
    """An output that never raises: where it is closed, broken or unread, the text is dropped."""

    def __init__(self, output: TextIO | None) -> None:
        self._output = output
        self._dropped = 0
        self._poll = _poll(output)
        try:  # the few signs that we use beyond ASCII
            "✓·×↻…━╸★".encode(getattr(output, "encoding", None) or "utf-8")
            self._unicode = True
        except (UnicodeEncodeError, LookupError):
            self._unicode = False

    def write(self, text: str, timeout_s: float = READER_TIMEOUT_S) -> None:
        """Writes and flushes `text`, which is dropped when nobody reads it for `timeout_s` seconds."""
        if self._output is None:
            return
        if not self._is_ready(timeout_s if self._dropped == 0 else 0.0):
            self._dropped += text.count("\n")
            return
        if self._dropped:
            text, self._dropped = f"({self._dropped:,} lines left out: nobody read them)\n{text}", 0
        try:
            self._output.write(text if self._unicode else ascii_only(text))
            self._output.flush()
        except (OSError, ValueError):  # the reader is gone, or the file is closed
            with contextlib.suppress(OSError, ValueError, AttributeError):
                drop(self._output)
            self._output = None

    def write_at_once(self, text: str) -> None:
        """Writes a frame past Python's buffer, or drops it: a process that is forked meanwhile would find the buffer's
        lock taken for good. All else is flushed, so the order stays."""
        if self._output is None or self._poll is None or not self._is_ready(0.0):
            return
        with contextlib.suppress(OSError, ValueError):
            os.write(self._output.fileno(), (text if self._unicode else ascii_only(text)).encode())

    def _is_ready(self, timeout_s: float) -> bool:
        try:
            return self._poll is None or bool(self._poll.poll(timeout_s * 1000))
        except OSError:
            return True  # the write finds out


def _poll(output: TextIO | None) -> "select.poll | None":
    try:
        poll = select.poll()
        poll.register(output.fileno(), select.POLLOUT)  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):  # no file behind it
        return None
    return poll
