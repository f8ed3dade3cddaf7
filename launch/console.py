"""Messages for people: on stderr, plain when piped or with NO_COLOR; they never fail and never block for long."""

import contextlib
import os
import select
import sys

_COLORS = {"red": 31, "green": 32, "yellow": 33}
WRITE_TIMEOUT_S = 1.0
"""How long a message waits for a console that accepts nothing."""
PIPE_BYTES = 4096
"""What a pipe that is ready accepts at once."""


def say(text: str) -> None:
    """Prints one message. A closed terminal, or a pipe that nobody reads, neither ends nor delays a training."""
    if sys.stderr is None:
        return
    try:
        file = sys.stderr.fileno()
    except (OSError, ValueError):  # not backed by a file
        print(text, file=sys.stderr, flush=True)
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
        data = f"{text}\n".encode(sys.stderr.encoding or "utf-8", "backslashreplace")
        while data and select.select([], [file], [], WRITE_TIMEOUT_S)[1]:
            data = data[os.write(file, data[:PIPE_BYTES]) :]


def mark(sign: str, color: str) -> str:
    """The sign that begins a line, coloured on a terminal."""
    if os.environ.get("NO_COLOR") or sys.stderr is None or not sys.stderr.isatty():
        return sign
    return f"\x1b[{_COLORS[color]}m{sign}\x1b[0m"


def open_standard_streams() -> None:
    """Opens /dev/null in place of a standard stream that the process was started without.

    Otherwise the next file to be opened would get the stream's number, and printed text would end up in it.
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


def ranges(ranks: list[int]) -> str:
    """`[0, 1, 2, 5]` as `0-2, 5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
