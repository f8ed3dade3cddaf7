"""What the user sees: on a terminal a progress bar, elsewhere one key=value line an interval. All of it on stderr."""

import os
import sys
from typing import Protocol, TextIO

import numpy as np

from dist_train.tracking.base import Interval, Note, Row, RunFacts, SessionOutcome, Sink
from dist_train.tracking.formatting import header_lines, plain_evaluation, plain_interval, summary
from dist_train.tracking.stream import LossyStream


class View(Protocol):
    """How the lines are shown."""

    def begin(self, facts: RunFacts) -> None: ...
    def tick(self, step: int) -> None: ...
    def interval(self, interval: Interval) -> None: ...
    def evaluation(self, row: Row) -> None: ...
    def line(self, text: str) -> None: ...
    def close(self) -> None: ...


class ConsoleSink(Sink):
    """Shows a run on `output`, sys.stderr as it is when the run begins unless given."""

    name = "the console"

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output
        self._view: View | None = None
        self._early: list[str] = []
        self._facts: RunFacts | None = None

    def begin(self, facts: RunFacts, note: Note) -> None:
        output = self._output if self._output is not None else sys.stderr
        self._facts = facts
        self._view = _terminal(output) if interactive(output) else PlainView(LossyStream(output))
        for line in header_lines(facts) + self._early:  # notes from before the console was open
            self._view.line(line)
        self._view.begin(facts)

    def tick(self, step: int) -> None:
        if self._view is not None:
            self._view.tick(step)

    def log_steps(self, interval: Interval) -> None:
        if self._view is not None:
            self._view.interval(interval)

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        if self._view is not None:
            self._view.evaluation(row)

    def note(self, line: str) -> None:
        if self._view is None:
            self._early.append(line)
        else:
            self._view.line(line)

    def finish(self, outcome: SessionOutcome) -> None:
        if self._view is None or self._facts is None:
            return
        self._view.close()
        for line in summary(self._facts, outcome):
            self._view.line(line)

    def close(self) -> None:
        if self._view is not None:
            self._view.close()


class PlainView:
    """Lines, for a pipe, a file or a terminal that cannot move its cursor."""

    def __init__(self, stream: LossyStream) -> None:
        self._stream = stream
        self._facts: RunFacts | None = None

    def begin(self, facts: RunFacts) -> None:
        self._facts = facts

    def tick(self, step: int) -> None:
        pass

    def interval(self, interval: Interval) -> None:
        self.line(plain_interval(interval))

    def evaluation(self, row: Row) -> None:
        self.line(plain_evaluation(row))

    def line(self, text: str) -> None:
        self._stream.write(f"{text}\n")

    def close(self) -> None:
        pass


def interactive(output: TextIO | None) -> bool:
    """Whether a bar can be drawn there: a terminal, and one that can move its cursor."""
    try:
        return output is not None and output.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except ValueError:  # a closed file
        return False


def _terminal(output: TextIO) -> View:
    from dist_train.tracking.console_rich import TerminalView  # rich is for terminals alone

    return TerminalView(output)
