"""What the user sees on stderr: here one key=value line an interval; on a terminal as in tracking/terminal.py."""

import sys

import numpy as np

from dist_train.tracking.base import Interval, Note, Row, RunFacts, SessionOutcome, Sink
from dist_train.tracking.formatting import header_lines, plain_evaluation, plain_interval, summary, text_lines
from dist_train.tracking.stream import LossyStream


class ConsoleSink(Sink):
    """Shows a run as lines: for a pipe, a file or a terminal that cannot move its cursor."""

    name = "the console"

    def __init__(self) -> None:
        self._stream = LossyStream(sys.stderr)
        self._facts: RunFacts | None = None
        self._early: list[str] = []
        """Lines that come before the run begins; they are shown after its header."""

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._facts = facts
        for line in header_lines(facts) + self._early:
            self._show(line)

    def log_steps(self, interval: Interval) -> None:
        self._show(plain_interval(interval))

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        for line in (plain_evaluation(row), *text_lines(row)):
            self._show(line)

    def note(self, line: str) -> None:
        if self._facts is None:
            self._early.append(line)
        else:
            self._show(line)

    def finish(self, outcome: SessionOutcome) -> None:
        self.close()
        for line in summary(self._facts, outcome) if self._facts is not None else ():
            self._show(line)

    def _show(self, line: str) -> None:
        self._stream.write(f"{line}\n")
