"""What the launcher writes into the run directory. No launch ends because a disk refuses that."""

import json
import os
import time
from pathlib import Path
from typing import Any

from dist_train.rundir.codec import write_json
from dist_train.rundir.files import open_to_append

AGAIN_S = 1.0
"""Seconds between two tries to write what the disk has refused."""


class RunFiles:
    """Keeps what the disk refuses, and writes it once the disk takes it."""

    def __init__(self) -> None:
        self._left: dict[Path, Any] = {}
        """What is still to be written, by path: an object replaces the file, a text is added to it."""
        self._is_refused, self._next = False, 0.0
        self._news: list[str] = []

    def write(self, path: Path, content: Any) -> None:
        """Replaces a file by a record, or by any object that JSON has."""
        self._left[path] = content
        self._try()

    def append(self, path: Path, row: dict[str, Any]) -> None:
        """Adds a line of JSON to a file."""
        self._left[path] = self._left.get(path, "") + json.dumps(row) + "\n"
        self._try()

    def try_again(self) -> None:
        """Tries again to write what was refused; to be called now and then."""
        if self._left and time.monotonic() >= self._next:
            self._try()

    def left(self) -> list[str]:
        """Names of the files that could not be written, after a last try."""
        self._try()
        return sorted(path.name for path in self._left)

    def take_news(self) -> list[str]:
        """What to tell the user: that a disk has begun to refuse, that all is written."""
        news, self._news = self._news, []
        return news

    def _try(self) -> None:
        before, names = self._is_refused, ", ".join(sorted(path.name for path in self._left))
        for path, content in [*self._left.items()]:
            try:
                append(path, content) if isinstance(content, str) else write_json(path, content)
            except OSError as error:
                self._next = time.monotonic() + AGAIN_S
                if not before:
                    self._news.append(f"{path}: {error.strerror}; kept until it can be written")
                self._is_refused = True
                return
            del self._left[path]
        if before:
            self._news.append(f"{names}: written")
        self._is_refused = False


def append(path: Path, text: str) -> None:
    """Adds a text to a file, all of it or nothing. Raises OSError."""
    file = open_to_append(path)
    size = os.fstat(file).st_size
    try:
        data = text.encode()
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        os.ftruncate(file, size)
        raise
    finally:
        os.close(file)
