"""Results, for people and programs, on stdout. Messages go to stderr."""

import os
import sys
from collections.abc import Collection, Sequence
from typing import TextIO


def tell(text: str, code: int = 2) -> None:
    """Writes `text` and a newline, unbuffered. A reader that has closed the pipe, such as `head`, is no error and does
    not change the exit code.

    Args:
        code: the exit code if the output cannot be written.

    Raises:
        SystemExit: (`code`) when the output cannot be written for another reason, after one line on stderr.
    """
    if sys.stdout is None:  # closed by our parent
        return
    try:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)
    except OSError as error:
        drop(sys.stdout)
        print(f"cannot write to stdout: {error.strerror}", file=sys.stderr)
        sys.exit(code)


def aligned(rows: Sequence[Sequence[str]], *, to_the_right: Collection[str] = ()) -> str:
    """A table whose columns have two blanks between them; the first row is its head.

    Args:
        to_the_right: names of columns that hold numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [">" if name in to_the_right else "<" for name in rows[0]]
    lines = ("  ".join(f"{c:{side}{w}}" for c, side, w in zip(row, sides, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def drop(output: TextIO) -> None:
    """Discards what is still to be written to `output`: Python would fail on it at exit, and change the exit code.

    The file is not closed: the next file that is opened would get its number, and what C++ code writes to it.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, output.fileno())
    os.close(nowhere)
