"""logs/rank0.log: every line that the user is shown, and the warnings of libraries, which the console does not show."""

import contextlib
import logging
import logging.handlers
from pathlib import Path

import numpy as np

from dist_train.tracking.base import Note, Row, RunFacts, SessionOutcome, Sink


class LogFileSink(Sink):
    """While it is open, Python's warnings and the root logger's records go to the file too; warnings only there."""

    name = "the log file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handler: logging.Handler | None = None
        self._lines = logging.Logger("dist_train")  # outside the hierarchy, so that no other handler gets the lines

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = _QuietHandler(self._path, encoding="utf-8", errors="backslashreplace")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._lines.addHandler(self._handler)
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)
        where = f"generation {facts.generation}, {facts.world_size} ranks, from step {facts.first_step}"
        self._lines.info("%s, %s", facts.name, where)

    def note(self, line: str) -> None:
        self._lines.info("%s", line)

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        for number, text in enumerate(row.get("texts", ())):
            self._lines.info("text %d of step %d:\n%s", number, row["step"], text)

    def finish(self, outcome: SessionOutcome) -> None:
        self._lines.info("%s after %.1f s", outcome.status, outcome.seconds)

    def close(self) -> None:
        if self._handler is None:
            return
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._handler)
        self._lines.removeHandler(self._handler)
        self._handler.close()
        self._handler = None


class _QuietHandler(logging.handlers.WatchedFileHandler):
    """The launcher may rename the file when it has grown large; the next line goes to the new one."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk loses log lines, which the console has too; a traceback for each would be worse."""
