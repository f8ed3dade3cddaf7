"""Follows a file that grows."""

import os
from pathlib import Path

from dist_train.rundir.reading import open_regular


class GrowingFile:
    """A file that is added to, that need not be there yet, and that a shorter one may replace.

    Args:
        begin: bytes that are known already.

    Attributes:
        is_other: the last look has found another file than the one before.
    """

    def __init__(self, path: Path, begin: int = 0) -> None:
        self._path, self._at = path, begin
        self._number: int | None = None
        self.is_other = False

    def news(self, most: int = -1, *, whole_lines: bool = True) -> bytes:
        """What was added since the last look, `most` bytes of it; a line that has only begun is left for a later one,
        unless `whole_lines` is False."""
        try:
            descriptor = open_regular(self._path)
        except OSError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            self.is_other = self._number not in (None, found.st_ino) or found.st_size < self._at
            self._number, self._at = found.st_ino, 0 if self.is_other else self._at
            file.seek(self._at)
            content = file.read(most)
        content = content[: content.rfind(b"\n") + 1] if whole_lines else content
        self._at += len(content)
        return content
