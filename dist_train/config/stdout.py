"""Results, for people and programs, on stdout. Messages go to stderr."""

import os
import sys
from collections.abc import Collection, Sequence


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
        drop()
    except OSError as error:
        drop()
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


def drop() -> None:
    """Discards what is still to be written, so that Python does not complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
