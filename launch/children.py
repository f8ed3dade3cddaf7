"""How other processes of ours are started, and where they find our packages."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
"""The folder that our packages are imported from."""


def isolated(module: str) -> tuple[str, ...]:
    """What a rank executes when it needs no module of the user's."""
    return (str(ROOT / "dist_train" / "isolated" / "run.py"), module)


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by `python -m module`, which receives the signals and sets the exit code.

    The current folder is not searched for modules: it may be a run that somebody else has sent.
    """
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environment())


def environment(**variables: str) -> dict[str, str]:
    """For another process of ours: this one's, with `variables` and with our packages first on PYTHONPATH."""
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(ROOT), *given])}
