"""logs/rank0.log: every line said to the user, and what libraries warn about, which the console is spared."""

import contextlib
import logging
import logging.handlers
from pathlib import Path

from dist_train.tracking.base import Note, RunFacts, SessionOutcome, Sink


class LogFileSink(Sink):
    """While it is open, Python's warnings and the root logger's records go to the file too; warnings only there."""

    name = "the log file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handler: logging.Handler | None = None
        self._said = logging.Logger("dist_train")  # outside the hierarchy, so that no other handler gets the lines

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = _QuietHandler(self._path, encoding="utf-8", errors="backslashreplace")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._said.addHandler(self._handler)
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)
        self._said.info(
            "%s, generation %d, %d ranks, from step %d",
            facts.name,
            facts.generation,
            facts.world_size,
            facts.first_step,
        )

    def note(self, line: str) -> None:
        self._said.info("%s", line)

    def finish(self, outcome: SessionOutcome) -> None:
        self._said.info("%s after %.1f s", outcome.status, outcome.seconds)

    def close(self) -> None:
        if self._handler is None:
            return
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._handler)
        self._said.removeHandler(self._handler)
        self._handler.close()
        self._handler = None


class _QuietHandler(logging.handlers.WatchedFileHandler):
    """The launcher may rename the file when it has grown large; the next line goes to the new one."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk loses log lines, which the console has too; a traceback for each would be worse."""
