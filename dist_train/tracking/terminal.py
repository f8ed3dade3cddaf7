"""The terminal's view: lines that stay, and below them one progress line that is redrawn in place.

rich's Live hides the cursor and would leave it hidden where a process is killed, and needs a thread or a few
milliseconds a frame. This line is one write: nothing to restore, nothing to join.
"""

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dist_train.tracking.base import Interval, Note, Row, RunFacts
from dist_train.tracking.console import ConsoleSink
from dist_train.tracking.formatting import clock, joined, measures, number, text_lines

REDRAW_S = 0.25
"""Between two frames, each of which costs about 0.05 ms."""
_BAR = 24
_ATTRIBUTES, _COLOURS = {"bold": 1, "dim": 2}, {"red": 31, "green": 32, "yellow": 33, "cyan": 36, "bright_black": 90}
_STYLES = {"✓": "bold green", "!": "bold yellow", "✗": "bold red", "↻": "bold cyan"}
_CONTROL = dict.fromkeys(map(ord, "\a\b\v\f\r"))
"""Characters that would move the cursor."""


def _styled(text: str, style: str) -> str:
    """`text` with ANSI codes around it; without the colour where NO_COLOR is set (https://no-color.org)."""
    codes = _ATTRIBUTES if os.environ.get("NO_COLOR") else _ATTRIBUTES | _COLOURS
    chosen = ";".join(str(codes[word]) for word in style.split() if word in codes)
    return f"\x1b[{chosen}m{text}\x1b[0m" if chosen and text else text


def console() -> ConsoleSink:
    """With a progress line where stderr is a terminal that can move its cursor."""
    try:
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # a closed file
        is_terminal = False
    can_move = os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return TerminalSink() if is_terminal and can_move else ConsoleSink()


class TerminalSink(ConsoleSink):
    """Draws on a terminal. From begin to close, what others print to stdout and stderr appears above."""

    def __init__(self) -> None:
        super().__init__()
        self._output = sys.stderr
        self._is_open = False
        self._step = 0
        self._due = 0.0
        self._drawn = False
        self._middle_of_line = False
        self._interval: Interval | None = None
        self._interval_at = 0.0
        self._last_share = ""
        self._replaced: list[tuple[str, Any, Any]] = []

    def begin(self, facts: RunFacts, note: Note) -> None:
        super().begin(facts, note)
        self._is_open, self._step = True, facts.first_step
        for name in ("stdout", "stderr"):
            original = getattr(sys, name)
            if original is not None and original.isatty():
                above = _Above(original, self)
                self._replaced.append((name, original, above))
                setattr(sys, name, above)
        self._draw()

    def tick(self, step: int) -> None:
        self._step = step
        if time.monotonic() >= self._due:
            self._draw()

    def log_steps(self, interval: Interval) -> None:
        self._interval, self._interval_at = interval, time.monotonic()

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        shown, name = measures(row), row.get("split", "evaluation")
        if name == "evaluation":
            name = f"epoch {number(row['epoch'])}"
            self._last_share = dict(shown).get("accuracy", self._last_share)
        for line in (f"  {name:<9} {joined(shown)}", *text_lines(row)):
            self._show(line)

    def _show(self, line: str) -> None:
        text = line.translate(_CONTROL)
        if text[:1] in _STYLES:
            text = _styled(text[0], _STYLES[text[0]]) + text[1:]
        if text.startswith("  ") and (gap := text.find("  ", 2)) > 0:
            text = _styled(text[:gap], "dim") + text[gap:]
        self._stream.write(f"{self._erased()}{text}\n")
        self._draw()

    def close(self) -> None:
        """Takes the progress line away and gives stdout and stderr back."""
        self._stream.write(self._erased())
        self._is_open = False
        for name, original, above in self._replaced:
            if getattr(sys, name) is above:
                setattr(sys, name, original)
        self._replaced.clear()

    def make_room(self, text: str) -> None:
        """Somebody else is about to print `text`."""
        if self._drawn:
            self._stream.write(self._erased())
        if text:
            self._middle_of_line = not text.endswith("\n")

    def _erased(self) -> str:
        """What has to be written before a new line: nothing, or the end of the progress line, or of somebody's line."""
        drawn, self._drawn = self._drawn, False
        started, self._middle_of_line = self._middle_of_line, False
        return "\r\x1b[K" if drawn else "\n" if started else ""

    def _draw(self) -> None:
        if self._facts is None or not self._is_open:
            return
        self._due = time.monotonic() + REDRAW_S
        try:
            width = os.get_terminal_size(self._output.fileno()).columns or 80
        except (OSError, ValueError):
            width = 80
        room = width - 1  # one cell short: a full line would wrap, and could not be erased
        line = self._erased()
        for text, style in self._pieces(self._facts):
            line += _styled(text[:room], style)
            room -= len(text[:room])
        self._stream.write(line, timeout_s=0.0)
        self._drawn = True

    def _pieces(self, facts: RunFacts) -> Iterator[tuple[str, str]]:
        """(text, style) of the progress line from left to right; every character is one cell wide."""
        yield "epoch ", "dim"
        yield f"{facts.epoch_of(self._step):>{len(str(facts.epochs))}}/{facts.epochs} ", ""
        filled = _BAR * self._step // max(facts.total_steps, 1)
        tip = "╸" if 0 < filled < _BAR else ""
        yield "━" * filled + tip, "green"
        yield "━" * (_BAR - filled - len(tip)), "bright_black"
        yield f"  {self._step:,}/{facts.total_steps:,} steps", ""
        if self._interval is None:
            yield "  …", ""
            return
        interval, row = self._interval, self._interval.summary
        loss = number(float(row["loss"])) if "loss" in row else ""
        lr = f"{row['lr']:.3g}" if "lr" in row else ""
        for label, value in (("loss", loss), ("acc", self._last_share), ("lr", lr)):
            if value:
                yield f"  {label} ", "dim"
                yield value, ""
        for name, speed in list(interval.speeds.items())[-1:]:
            yield f"  {speed:,.0f} {name.removesuffix('_per_s')}/s", ""
        if (left := (interval.seconds_left or 0.0) - (time.monotonic() - self._interval_at)) > 0:
            yield f"  {clock(left)} left", ""


class _Above:
    """Stands in for sys.stdout or sys.stderr: the progress line makes room for what is printed, tracebacks too."""

    def __init__(self, output: Any, sink: TerminalSink) -> None:
        self._output, self._sink = output, sink

    def write(self, text: str) -> int:
        self._sink.make_room(text)
        return self._output.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)
