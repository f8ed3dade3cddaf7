"""Human text: to stderr, plain when piped or with NO_COLOR, and never a reason to fail."""

import os
import sys

_COLORS = {"red": 31, "green": 32, "yellow": 33}


def say(text: str) -> None:
    """One message. A closed terminal or pipe is no reason to end a training."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def mark(sign: str, color: str) -> str:
    """The sign a line begins with, coloured on a terminal."""
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        return sign
    return f"\x1b[{_COLORS[color]}m{sign}\x1b[0m"
