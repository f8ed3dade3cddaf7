"""Results, for people and programs, on stdout. Everything that is said goes to stderr."""

import os
import sys


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


def drop() -> None:
    """What is still to be written goes nowhere, so that Python finds nothing to complain of when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
