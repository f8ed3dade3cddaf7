"""What the user sees: on a terminal a progress bar, elsewhere one key=value line an interval. All of it on stderr."""

import os
import sys
from typing import TextIO

import numpy as np

from dist_train.tracking.base import Interval, Note, Row, RunFacts, SessionOutcome, Sink
from dist_train.tracking.formatting import header_lines, summary
from dist_train.tracking.terminal import TerminalView
from dist_train.tracking.view import PlainView


class _EarlyView(PlainView):
    """Keeps the lines that come before the console is open; they are shown after the header."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class ConsoleSink(Sink):
    """Shows a run on `output`, sys.stderr as it is when the run begins unless given."""

    name = "the console"

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output
        self._early = _EarlyView()
        self._view: PlainView = self._early
        self._facts: RunFacts | None = None

    def begin(self, facts: RunFacts, note: Note) -> None:
        output = self._output if self._output is not None else sys.stderr
        self._facts = facts
        self._view = TerminalView(output) if interactive(output) else PlainView(output)
        for line in header_lines(facts) + self._early.lines:
            self._view.line(line)
        self._view.begin(facts)

    def tick(self, step: int) -> None:
        self._view.tick(step)

    def log_steps(self, interval: Interval) -> None:
        self._view.interval(interval)

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        self._view.evaluation(row)

    def note(self, line: str) -> None:
        self._view.line(line)

    def finish(self, outcome: SessionOutcome) -> None:
        self._view.close()
        if self._facts is not None:
            for line in summary(self._facts, outcome):
                self._view.line(line)

    def close(self) -> None:
        self._view.close()


def interactive(output: TextIO | None) -> bool:
    """Whether a bar can be drawn there: a terminal, and one that can move its cursor."""
    try:
        return output is not None and output.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except ValueError:  # a closed file
        return False
