"""What ends a run early, and with which exit code. No torch here."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of the process; each has one meaning, for scripts and schedulers."""

    DONE = 0
    CONFIG = 2
    """Config or usage."""
    OWNED = 3
    """The run directory belongs to a live run."""
    CANNOT_RESUME = 4
    USER_CODE = 10
    """User code failed, or no progress."""
    NON_FINITE = 11
    OUT_OF_MEMORY = 12
    DATA = 13
    CHECKPOINT_IO = 14
    HANG = 15
    REQUEUE = 75
    """Saved; start me again."""
    INTERRUPTED = 130
    """Stopped by SIGINT, saved."""
    TERMINATED = 143
    """Stopped by SIGTERM, saved."""


class UserError(Exception):
    """An error that the user can fix: one line with what was given, what is allowed and what to do.

    Attributes:
        usual: the exit code of this kind of error, where no other one is given.
    """

    usual = ExitCode.CONFIG

    def __init__(self, message: str, code: ExitCode | None = None) -> None:
        super().__init__(message)
        self.code = self.usual if code is None else code


class ResumeError(UserError):
    """There is nothing to go on from, or nothing that fits."""

    usual = ExitCode.CANNOT_RESUME


class UserCodeError(UserError):
    """The user's model, data set, task, optimizer or callback does something that it must not."""

    usual = ExitCode.USER_CODE


class DataError(UserError):
    """The data is not there, not readable, or not what the task learns from."""

    usual = ExitCode.DATA


class DiskError(UserError):
    """The disk refuses."""

    usual = ExitCode.CHECKPOINT_IO


def require_linux() -> None:
    """Raises UserError on another system, before anything of Linux is missed there."""
    if sys.platform != "linux":
        raise UserError(
            f"dist-train needs Linux, and this is {sys.platform}: use a Linux machine, WSL on Windows, or a container"
        )


@contextmanager
def telling_why(what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Where the disk refuses something in the block, that is an error for the user: `what`, and the reason."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror}") from None
