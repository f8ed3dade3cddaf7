"""Console blocks of a document, and a terminal that runs them.

What a document may write:

- A block ```` ```console ```` is a terminal. A line `$ …` is a command of bash, and lines `> …` below it are its next
  lines. What stands below is what it prints, up to the next `$`. `^C` on a line of its own presses Ctrl-C there, once
  the line above it has been printed.
- A page's blocks run in its order, in one folder, which has `configs/` and `examples/`, and what GIVEN says.
- A block of another language whose first line is `# PATH` and nothing else is that file. It is written when its turn
  comes.
- A command ends with 0, and with 130 after `^C`. One for which the page shows a line that begins with `✗` ends with
  another code.
- Each line that is shown is printed, in this order; others may be printed between them. In a line, a number, a date,
  the name of a run and a path of this machine stand for any other, and so does `…` for any text. A space stands for
  spaces. A star before an epoch may be missing. A hash stands for another one, but always the same.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 120
SILENCE = 600.0
"""Seconds without a byte of output after which a command is taken for stuck."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that a page shows."""

    line: int
    path: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a page and what it is said to print."""

    line: int
    text: str
    shown: tuple[str, ...]

    def may_end_with(self, code: int) -> bool:
        if "^C" in self.shown:
            return code == 130
        return (code != 0) == any(line.startswith("✗") for line in self.shown)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: the line of its fence, counted from 1, its language and its lines."""

    line: int
    language: str
    lines: tuple[str, ...]

    def commands(self) -> Iterator[Command]:
        """Of a console block."""
        starts = [number for number, line in enumerate(self.lines) if line.startswith("$ ")]
        assert starts and starts[0] == 0, f"line {self.line}: a console block begins with `$ `"
        for start, end in zip(starts, [*starts[1:], len(self.lines)], strict=True):
            shown = start + 1
            while shown < end and self.lines[shown].startswith("> "):
                shown += 1
            words = [line[2:] for line in self.lines[start:shown]]
            yield Command(line=self.line + 1 + start, text="\n".join(words), shown=self.lines[shown:end])

    def file(self) -> File | None:
        """The file that the block is, if it is one."""
        named = re.fullmatch(r"# ([\w./-]+\.\w+)", self.lines[0]) if self.lines else None
        if self.language == "console" or not named:
            return None
        return File(line=self.line, path=named[1], text="\n".join(self.lines[1:]).strip("\n") + "\n")


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page that begin at the margin."""
    lines = page.read_text().splitlines()
    begin = None
    for number, line in enumerate(lines, 1):
        if begin is None and (fence := re.fullmatch(r"```(\w*)", line)):
            begin, language = number, fence[1]
        elif begin is not None and line == "```":
            yield Block(line=begin, language=language, lines=tuple(lines[begin : number - 1]))
            begin = None
    assert begin is None, f"{page}: the block of line {begin} has no end"


def steps(page: Path) -> Iterator[File | Command]:
    """What is to be done of a page, in its order."""
    for block in blocks(page):
        if block.language == "console":
            yield from block.commands()
        elif file := block.file():
            yield file


@dataclass(kw_only=True)
class Terminal:
    """A terminal of 120 columns in `folder`. Hashes that a page shows are noted with those that were printed."""

    folder: Path
    environment: dict[str, str]
    hashes: dict[str, str] = field(default_factory=dict)

    def do(self, step: File | Command) -> str:
        """Writes the file, or runs the command and compares; AssertionError says what differs. Gives the output."""
        if isinstance(step, File):
            path = self.folder / step.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            return ""
        printed, code = self._run(step)
        at = f"line {step.line}: {step.text}"
        assert step.may_end_with(code), f"{at}\nended with {code}:\n{printed}"
        self._compare(step, printed, at)
        return printed

    def _run(self, command: Command) -> tuple[str, int]:
        own, other = pty.openpty()
        modes = termios.tcgetattr(other)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(other, termios.TCSANOW, modes)
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        process = subprocess.Popen(
            ["bash", "-c", command.text],
            cwd=self.folder,
            env=self.environment,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(other)
        try:
            return self._read(own, command.shown), process.wait(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            os.close(own)

    def _read(self, terminal: int, shown: tuple[str, ...]) -> str:
        """All that is printed. Presses Ctrl-C where the page does."""
        before = [shown[number - 1] for number, line in enumerate(shown) if line == "^C"]
        printed, heard = b"", time.monotonic()
        while True:
            ready, _, _ = select.select([terminal], [], [], 1)
            try:
                piece = os.read(terminal, 65536) if ready else b""
            except OSError:  # EIO: nobody has the other end open any more
                return _clean(printed)
            if not piece:
                assert time.monotonic() < heard + SILENCE, f"silent for {SILENCE:.0f} s:\n{_clean(printed)}"
                continue
            printed, heard = printed + piece, time.monotonic()
            if before and any(self._matches(before[0], line) for line in _clean(printed).splitlines()):
                before.pop(0)
                os.write(terminal, b"\x03")

    def _compare(self, command: Command, printed: str, at: str) -> None:
        lines = iter(printed.splitlines())
        for shown in command.shown:
            if shown.strip() in ("", "…", "^C"):
                continue
            assert any(self._matches(shown, line) for line in lines), f"{at}\nnever printed: {shown}\n\n{printed}"

    def _matches(self, shown: str, line: str) -> bool:
        found = re.fullmatch(pattern(shown), " ".join(line.split()))
        if not found:
            return False
        pairs = list(zip(_HASH.findall(shown), found.groups(), strict=True))
        if any(self.hashes.get(known, new) != new for known, new in pairs):
            return False
        self.hashes.update(pairs)
        return True


_HASH = re.compile(r"\b(?=[0-9a-f]*[a-f])[0-9a-f]{32,64}\b")
_LOOSE = (
    (_HASH, r"([0-9a-f]{32,64})"),
    (re.compile(r"\d{8}-\d{6}-\w{4}"), r"\d{8}-\d{6}-\w{4}"),
    (re.compile(r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?"), r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d)?"),
    (re.compile(r"(?<![\w.])/(?:[\w.-]+/)*(?=[\w.-])"), r"/(?:[\w.-]+/)*"),
    (re.compile(r"\d+ m \d+ s|\d[\d.]* (?:ms|s)\b"), r"(?:\d+ h )?(?:\d+ m )?\d[\d.]* (?:ms|s)"),
    (re.compile(r"(?:(?<![\w-])-)?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"), r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"),
    (re.compile("…"), r".*"),
)
"""What stands for what, the first one that fits at a place."""


def pattern(shown: str) -> str:
    """The expression for a line that a page shows."""
    text = " ".join(shown.removeprefix("★").split())
    found, place = "(?:★ )?", 0
    while place < len(text):
        for loose, stands_for in _LOOSE:
            if match := loose.match(text, place):
                found, place = found + stands_for, match.end()
                break
        else:
            found, place = found + re.escape(text[place]), place + 1
    return found


def _clean(printed: bytes) -> str:
    """Without colours and movements; a line that was drawn over is a line of its own."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", re.sub(r"\x1b\[[\d;]*m", "", printed.decode(errors="replace")))
    lines = (line.rstrip() for line in re.split(r"[\r\n]+", text))
    return "\n".join(line for line in lines if line.strip() and "━" not in line)  # without the bar
