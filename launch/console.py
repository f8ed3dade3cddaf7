"""Human text: to stderr, plain when piped or with NO_COLOR, and never a reason to fail or to wait for long."""

import os
import select
import sys

_COLORS = {"red": 31, "green": 32, "yellow": 33}
WRITE_TIMEOUT_S = 1.0
"""That a message waits for a console that takes nothing."""
PIPE_BYTES = 4096
"""That a pipe takes at once when it is ready."""


def say(text: str) -> None:
    """One message. A closed terminal, or a pipe that nobody reads, is no reason to end a training or to hold it up."""
    if sys.stderr is None:
        return
    try:
        file = sys.stderr.fileno()
    except (OSError, ValueError):  # no file behind it
        print(text, file=sys.stderr, flush=True)
        return
    try:
        sys.stderr.flush()
        _write(file, f"{text}\n".encode(sys.stderr.encoding or "utf-8", "backslashreplace"))
    except (OSError, ValueError):
        return


def _write(file: int, data: bytes) -> None:
    while data and select.select([], [file], [], WRITE_TIMEOUT_S)[1]:
        data = data[os.write(file, data[:PIPE_BYTES]) :]


def mark(sign: str, color: str) -> str:
    """The sign a line begins with, coloured on a terminal."""
    if os.environ.get("NO_COLOR") or sys.stderr is None or not sys.stderr.isatty():
        return sign
    return f"\x1b[{_COLORS[color]}m{sign}\x1b[0m"


def open_standard_streams() -> None:
    """Gives a process that was started without stdin, stdout or stderr empty ones.

    Else the next files opened would get their numbers, and what anybody prints would go there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
