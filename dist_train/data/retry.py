"""Reading that fails because the storage is away for a moment is tried again: a server restarts, a mount comes back."""

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

AWAY = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EHOSTDOWN"),
        *("EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "EREMOTEIO", "ENODEV", "ENXIO", "ESHUTDOWN", "EAGAIN"),
    )
}
"""What a network file system or a device says while its other end is gone."""
FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 10.0


def with_patience(read: Callable[[], T], seconds: float, wait: Callable[[float], object] = time.sleep) -> T:
    """What `read` returns. While it fails because the storage is away it is called again, ever more seldom, and the
    first failure is told on stderr.

    Args:
        wait: for so many seconds; what it returns is true where nobody wants the answer any more.

    Raises:
        Exception: what it raised, when that has another reason, or the time is over.
    """
    deadline, pause = time.monotonic() + seconds, FIRST_PAUSE_S
    is_told = False
    while True:
        try:
            found = read()
        except Exception as error:
            reason = storage_error(error)
            if reason is None or time.monotonic() + pause > deadline:
                raise
            if not is_told:
                where = f": {os.fsdecode(reason.filename)}" if reason.filename else ""
                print(f"! the data is away ({reason.strerror}{where}); trying again for {seconds:g} s", file=sys.stderr)
            is_told = True
            if wait(pause):
                raise
        else:
            if is_told:
                print("! the data is back", file=sys.stderr)
            return found
        pause = min(2 * pause, MOST_PAUSE_S)


def storage_error(error: BaseException | None) -> OSError | None:
    """Of an exception and those that it was raised from, the one that says that the storage is away. A file that is
    missing counts when its folder is missing too: else somebody has removed it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in AWAY:
            return error
        if isinstance(error, OSError) and error.errno == errno.ENOENT and isinstance(error.filename, str | bytes):
            return None if os.path.isdir(os.path.dirname(os.path.abspath(error.filename))) else error
        error = error.__cause__
    return None
