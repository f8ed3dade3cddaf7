"""What the user sees on stderr: here one line an interval; on a terminal as in tracking/terminal.py."""

import sys
import time

import numpy as np

from dist_train.report.live import Live, evaluation_line, stamped
from dist_train.tracking.base import Interval, Note, Row, RunFacts, SessionOutcome, Sink
from dist_train.tracking.formatting import header_lines, summary, text_lines
from dist_train.tracking.stream import LossyStream


class ConsoleSink(Sink):
    """Shows a run as lines: for a pipe, a file or a terminal that cannot move its cursor."""

    name = "the console"

    def __init__(self) -> None:
        self._stream = LossyStream(sys.stderr)
        self._facts: RunFacts | None = None
        self._live: Live | None = None
        self._early: list[str] = []
        """Lines that come before the run begins; they are shown after its header."""

    @property
    def _room(self) -> int | None:
        """Cells of a line, where that is known."""
        return None

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._facts = facts
        size, now = (facts.total_steps, facts.steps_per_epoch), time.monotonic()
        self._live = Live(facts.config, *size, now, facts.first_step, facts.best_value)
        for line in header_lines(facts, self._room) + self._early:
            self._show(line)

    def log_steps(self, interval: Interval) -> None:
        if self._live is not None:
            left, now = interval.seconds_left, time.monotonic()
            self._live.add_steps(interval.rows, interval.summary, interval.speeds, left, now)
            self._show_steps(self._live)

    def _show_steps(self, live: Live) -> None:
        self._show(stamped(live.log_line(), None))

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        if self._live is not None:
            parts = self._live.add_evaluation(row, time.monotonic())
            for line in (stamped(evaluation_line(parts, row), None), *text_lines(row)):
                self._show(line)

    def note(self, line: str) -> None:
        if self._facts is None:
            self._early.append(line)
        else:
            self._show(line)

    def finish(self, outcome: SessionOutcome) -> None:
        self.close()
        for line in summary(self._facts, outcome, self._room) if self._facts is not None else ():
            self._show(line)

    def _show(self, line: str) -> None:
        self._stream.write(f"{line}\n")
