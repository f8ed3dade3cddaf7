"""Keeps report.html up to date while a run goes on: a process of its own makes it, so that no step waits for it."""

import subprocess
import time
from contextlib import suppress

import numpy as np

from dist_train import report
from dist_train.rundir.files import replacing
from dist_train.rundir.layout import RunDir
from dist_train.rundir.strict_json import to_json
from dist_train.tracking.base import OF_THE_NEWEST, Note, Row, RunFacts, SessionOutcome, Sink
from dist_train.tracking.own_process import begin_process

PAUSE_S = 30.0
"""Seconds from the beginning to the first page, and at least between two."""
MOST_OF_THE_TIME = 0.01
"""The share of a core that may go into pages."""
MOST_CELLS = 10_000
"""Of a confusion matrix; of more classes, the largest are kept."""
_STOP_S = 1.0
"""For the process to end once it is told to."""
_SILENT = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)


class ReportSink(Sink):
    """Starts `python -m dist_train.report RUN` after evaluations.

    Args:
        makes_the_last: whether the session's end is this sink's; the launcher makes the last page where there is one,
            since it knows how the run has ended.
    """

    name = "report.html"

    def __init__(self, run: RunDir, *, makes_the_last: bool) -> None:
        self._run, self._makes_the_last = run, makes_the_last
        self._classes: tuple[str, ...] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = self._due = 0.0

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._classes = facts.classes
        self._due = time.monotonic() + PAUSE_S

    def tick(self, step: int) -> None:
        if self._process is not None and self._process.poll() is not None:
            took = time.monotonic() - self._begun
            self._process, self._due = None, time.monotonic() + max(PAUSE_S, took / MOST_OF_THE_TIME)

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        found = {key: row[key] for key in OF_THE_NEWEST if key in row}
        if confusion is not None:
            found["cells"] = _cells(confusion)
        if found:
            path = self._run.evaluation(str(row.get("split")))
            with suppress(OSError):  # the next one writes it again
                path.parent.mkdir(exist_ok=True)
                with replacing(path) as temporary:
                    temporary.write_text(to_json({"step": row["step"], "classes": self._classes, **found}) + "\n")
        if self._process is None and time.monotonic() >= self._due:
            self._begun, self._process = (
                time.monotonic(),
                begin_process("dist_train.report", str(self._run.path), **_SILENT),
            )

    def finish(self, outcome: SessionOutcome) -> None:
        self.close()
        if self._makes_the_last:
            report.write(self._run.path)

    def close(self) -> None:
        """The page that it leaves is the one before."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _cells(confusion: np.ndarray) -> list[list[int]]:
    """[actual, predicted, count], the largest first."""
    actual, predicted = np.nonzero(confusion)
    counts = confusion[actual, predicted]
    keep = np.argsort(-counts, kind="stable")[:MOST_CELLS]
    return np.stack([actual, predicted, counts], axis=1)[keep].tolist()
