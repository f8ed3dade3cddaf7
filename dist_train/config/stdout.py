"""Results, for people and programs, on stdout. Everything that is said goes to stderr."""

import os
import sys
from collections.abc import Collection, Sequence


def tell(text: str, code: int = 2) -> None:
    """Writes `text` and a line's end, at once. A reader that has left, as `head` does, has what it wanted: that is no
    error, and changes no exit code.

    Args:
        code: what the command ends with where the output cannot be written.

    Raises:
        SystemExit: (`code`) where the output cannot be written for another reason, said in one line.
    """
    if sys.stdout is None:  # closed by who has started us
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
    """What is still to be written goes nowhere, so that Python finds nothing to complain of when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
