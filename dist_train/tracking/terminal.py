"""The terminal's view: lines that stay, and below them one progress line that is redrawn in place.

rich's Live hides the cursor and would leave it hidden where a process is killed, and takes a few milliseconds a frame.
This line is one write: nothing to restore. A thread redraws it where no step has for a second, so that its clock never
stands still.
"""

import os
import sys
import threading
import time
from typing import Any

import numpy as np

from dist_train.heartbeat import set_aside
from dist_train.report.live import Live, Piece, coloured, most_important, styled
from dist_train.report.words import clock
from dist_train.tracking.base import Note, Row, RunFacts
from dist_train.tracking.console import ConsoleSink
from dist_train.tracking.formatting import text_lines

REDRAW_S = 0.25
"""Between two frames, each of which costs about 0.05 ms."""
QUIET_S = 1.0
"""Without a frame, after which the thread draws one."""
_STYLES = {"✓": "bold green", "!": "bold yellow", "✗": "bold red", "↻": "bold cyan"}
_CONTROL = dict.fromkeys(map(ord, "\a\b\v\f\r"))
"""Characters that would move the cursor."""


def console() -> ConsoleSink:
    """With a progress line where stderr is a terminal that can move its cursor."""
    try:
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # a closed file
        is_terminal = False
    can_move = os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return TerminalSink() if is_terminal and can_move else ConsoleSink()


class TerminalSink(ConsoleSink):
    """Draws on a terminal. While it is open, what others print to stdout and stderr appears above."""

    def __init__(self) -> None:
        super().__init__()
        self._output = sys.stderr
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._closing: threading.Event | None = None
        self._step, self._doing = 0, ""
        self._began = self._due = time.monotonic()
        self._is_drawn = False
        self._middle_of_line = False
        self._replaced: list[tuple[str, Any, Any]] = []

    @property
    def _room(self) -> int:
        """One cell short of the terminal: a full line would wrap, and could not be erased."""
        try:
            return (os.get_terminal_size(self._output.fileno()).columns or 80) - 1
        except (OSError, ValueError):
            return 79

    def _open(self) -> None:
        if self._closing is not None:
            return
        self._closing = threading.Event()
        for name in ("stdout", "stderr"):
            original = getattr(sys, name)
            if original is not None and original.isatty():
                above = _Above(original, self)
                self._replaced.append((name, original, above))
                setattr(sys, name, above)
        threading.Thread(target=self._keep_moving, args=(self._closing,), name="progress line", daemon=True).start()

    def _keep_moving(self, closing: threading.Event) -> None:
        set_aside(threading.get_native_id())
        while not closing.wait(QUIET_S):
            with self._lock:
                is_quiet = time.monotonic() - self._due > QUIET_S - REDRAW_S
                if is_quiet and not closing.is_set() and not self._middle_of_line:  # nor breaks somebody's bar
                    self._draw()

    def begin(self, facts: RunFacts, note: Note) -> None:
        with self._lock:
            self._open()
            super().begin(facts, note)
            self._step, self._doing = facts.first_step, "loading"
            self._draw()

    def tick(self, step: int) -> None:
        with self._lock:
            is_first = self._doing == "loading"
            self._step, self._doing = step, ""
            if is_first or time.monotonic() >= self._due:
                self._draw()

    def busy(self, what: str) -> None:
        with self._lock:
            self._open()
            is_new, self._doing = what.partition(" ")[0] != self._doing.partition(" ")[0], what
            if is_new or time.monotonic() >= self._due:
                self._draw()

    def _show_steps(self, live: Live) -> None:
        """The progress line has them."""

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        if self._live is None:
            return
        with self._lock:
            parts = most_important(self._live.add_evaluation(row, time.monotonic()), self._room)
            self._print(coloured(parts, self._room))
            for text in text_lines(row):
                self._show(text)

    def _show(self, line: str) -> None:
        text = line.translate(_CONTROL)
        if text[:1] in _STYLES:
            text = styled(text[0], _STYLES[text[0]]) + text[1:]
        if text.startswith("  ") and (gap := text.find("  ", 2)) > 0:
            text = styled(text[:gap], "dim") + text[gap:]
        self._print(text)

    def _print(self, text: str) -> None:
        with self._lock:
            self._stream.write(f"{self._erased()}{text}\n")
            self._draw()

    def close(self) -> None:
        """Takes the progress line away and gives stdout and stderr back."""
        with self._lock:
            self._stream.write(self._erased())
            if self._closing is not None:
                self._closing.set()
                self._closing = None
            for name, original, above in self._replaced:
                if getattr(sys, name) is above:
                    setattr(sys, name, original)
            self._replaced.clear()

    def write_above(self, output: Any, text: str) -> int:
        """Somebody else prints `text`."""
        if os.getpid() != self._pid:  # a child that was forked, perhaps while the thread had the lock
            return output.write(text)
        with self._lock:
            if self._is_drawn:
                self._stream.write(self._erased())
            if text:
                self._middle_of_line = not text.endswith("\n")
            return output.write(text)

    def _erased(self) -> str:
        """What has to be written before a new line: nothing, or the end of the progress line, or of somebody's line."""
        drawn, self._is_drawn = self._is_drawn, False
        started, self._middle_of_line = self._middle_of_line, False
        return "\r\x1b[K" if drawn else "\n" if started else ""

    def _draw(self) -> None:
        if self._closing is None:
            return
        now, room = time.monotonic(), self._room
        self._due = now + REDRAW_S
        if self._live is not None:
            self._live.step = self._step
            parts = self._live.bar(room - len("^C"), now, self._doing)  # which the terminal puts behind it
        else:
            parts = [Piece(text=self._doing, gap=0, style="cyan"), Piece(text=clock(now - self._began), style="dim")]
        self._stream.write_at_once(self._erased() + coloured(parts, room))
        self._is_drawn = True


class _Above:
    """Stands in for sys.stdout or sys.stderr: the progress line makes room for what is printed, tracebacks too."""

    def __init__(self, output: Any, sink: TerminalSink) -> None:
        self._output, self._sink = output, sink

    def write(self, text: str) -> int:
        return self._sink.write_above(self._output, text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)
