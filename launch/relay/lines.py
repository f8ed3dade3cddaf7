"""What a terminal would show in the end: text with carriage returns and cursor moves as lines in their last state."""

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_LINE = 65_536
"""Characters; a longer line is given on in pieces."""
TALLEST = 40
"""Lines that a block which is redrawn in place (several progress bars) may have."""
_MOVES = re.compile("[\r\b\x1b]")
_PARTS = re.compile(
    r"\x1b\[(?P<count>\d*)(?P<command>[A-Za-z])"
    r"|\x1b\[[0-9;?:<=>]*[ -/]*[@-~]"  # colours and the like
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|\x1b[^\[\]]"
    r"|(?P<control>[\n\r\b])"
    r"|(?P<text>[^\n\r\b\x1b]+)"
    r"|\x1b"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?:<=>]*|\][^\x07\x1b]{0,512}\x1b?)?\Z")


@dataclass
class _Row:
    text: str = ""
    redrawn: bool = False


class Lines:
    """Takes bytes as they come and gives text on, whole lines at a time.

    Lines are given on at once, unless the text has moved the cursor up: then the lines that it may come back to wait.
    What is no UTF-8 comes out as the same bytes when it is encoded with `surrogateescape`.
    """

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._rows = [_Row()]
        self._row = self._column = 0
        self._height = 0
        """How far up the cursor has ever been moved."""
        self._unfinished = ""
        """An escape sequence whose end has not come yet."""

    def feed(self, data: bytes) -> None:
        text = self._unfinished + self._decoder.decode(data)
        cut = _UNFINISHED.search(text, max(0, len(text) - 600))
        end = cut.start() if cut else len(text)
        text, self._unfinished = text[:end], text[end:]
        row = self._rows[0]
        begun = self._height > 0 or row.redrawn or self._column != len(row.text)
        self._feed_moves(text) if begun or _MOVES.search(text) else self._feed_plain(text)

    def settle(self) -> None:
        """Gives on what waits, as nothing has come for a while. A line that has only begun stays open."""
        row = self._rows[0]
        if len(self._rows) == 1 and not row.redrawn and self._height == 0:
            self._give(row.text)
            self._rows, self._row, self._column = [_Row()], 0, 0
        else:
            self.close()

    def close(self) -> None:
        """Gives on what there is; an open line is ended."""
        self._write(self._decoder.decode(b"", final=True))
        while self._rows and not self._rows[-1].text:
            self._rows.pop()
        self._give("".join(_finished(row) for row in self._rows))
        self._rows, self._row, self._column = [_Row()], 0, 0

    def _give(self, text: str) -> None:
        if text:
            self._emit(text)

    def _feed_plain(self, text: str) -> None:
        row = self._rows[0]
        whole, end, rest = (row.text + text).rpartition("\n")
        self._give(whole + end)
        row.text, self._column = "", 0
        self._write(rest)

    def _feed_moves(self, text: str) -> None:
        for part in _PARTS.finditer(text):
            if part["text"]:
                self._write(part["text"])
            elif part["control"]:
                self._control(part["control"])
            elif part["command"]:
                self._command(part["command"], part["count"])

    def _write(self, text: str) -> None:
        row = self._rows[self._row]
        end = self._column + len(text)
        row.text = row.text[: self._column].ljust(self._column) + text + row.text[end:]
        self._column = end
        if len(row.text) > LONGEST_LINE:
            self._give(row.text)
            row.text, self._column = "", 0

    def _control(self, sign: str) -> None:
        row = self._rows[self._row]
        if sign == "\n":
            self._down()
        else:
            row.redrawn = row.redrawn or bool(row.text)
        self._column = max(0, self._column - 1) if sign == "\b" else 0

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append(_Row())
        while len(self._rows) > self._height + 1 and self._row > 0:
            self._give(_finished(self._rows.pop(0)))
            self._row -= 1

    def _command(self, command: str, count: str) -> None:
        row = self._rows[self._row]
        if command == "A":
            up = min(int(count or 1), TALLEST)
            self._height = max(self._height, up)
            missing = max(0, up - self._row)  # those were given on before anybody knew
            self._rows[:0] = [_Row(redrawn=True) for _ in range(missing)]
            self._row += missing - up
        elif command == "B":
            for _ in range(min(int(count or 1), TALLEST)):
                self._down()
        elif command == "K":
            row.redrawn = True
            row.text = "" if count == "2" else " " * self._column if count == "1" else row.text[: self._column]


def _finished(row: _Row) -> str:
    """A line that was drawn over is without the blanks that erased it, and nothing where they erased it all."""
    text = row.text.rstrip() if row.redrawn else row.text
    return f"{text}\n" if text or not row.redrawn else ""
