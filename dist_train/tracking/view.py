"""How the console shows a run: here as lines; on a terminal as in tracking/terminal.py."""

from typing import TextIO

from dist_train.tracking.base import Interval, Row, RunFacts
from dist_train.tracking.formatting import plain_evaluation, plain_interval
from dist_train.tracking.stream import LossyStream


class PlainView:
    """Shows lines, for a pipe, a file or a terminal that cannot move its cursor."""

    def __init__(self, output: TextIO | None) -> None:
        self._stream = LossyStream(output)

    def begin(self, facts: RunFacts) -> None:
        pass

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
