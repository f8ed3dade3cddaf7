"""Carries an error from a loading process to the rank as text, since the exception itself may not survive the trip.

torch raises it again in the rank from its class and a text. That loses messages of several lines, notes, the members of
a group and the exit code, and it loses everything if the class takes other arguments. A StopIteration would look like
the end of the data. So the error is captured as text where it happens, and the rank raises an exception of the same
name with the same message. Errors without loading processes take the same path.
"""

import builtins
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_train.errors import ExitCode, UserError

_LONGEST = 100_000
"""Characters of a message; an exception may carry a whole array as text."""
_OF_THEIR_OWN = (StopIteration, StopAsyncIteration, SyntaxError, UnicodeError, BaseExceptionGroup)
"""Builtin exceptions that mean something to Python, or cannot be built from a text."""


class LoadingFailed(Exception):
    """An error that a data set raised; each subclass has the name of the original class.

    Attributes:
        raised_at: (file, line, function, text) of each frame in the process that raised it, the outermost first.
    """

    def __init__(self, message: str, raised_at: list[tuple[str, int, str, str]]) -> None:
        self._message, self.raised_at = message, raised_at

    def __str__(self) -> str:
        return self._message


class Original(Exception):
    """The traceback of another process, as the cause of what is raised here."""

    is_traceback = True

    def __init__(self, text: str) -> None:
        super().__init__(f"\n{text.rstrip()}")


@dataclass(frozen=True, kw_only=True)
class CapturedError:
    """An exception as text.

    Attributes:
        code: of a UserError, which needs no more than its message.
        base: the builtin exception that its class derives from, by name.
        cause: what it was raised from.
        traceback: of the whole, as Python prints it.
    """

    name: str
    module: str
    message: str
    code: ExitCode | None = None
    base: str = "Exception"
    notes: tuple[str, ...] = ()
    errno: int | None = None
    filename: str | None = None
    frames: tuple[tuple[str, int, str, str], ...] = ()
    cause: "CapturedError | None" = None
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "CapturedError":
        """Captures `error`. A KeyboardInterrupt that a terminal may have caused is raised again."""
        if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise error
        text = "".join(traceback.format_exception(error))[-_LONGEST:]
        return cls._of(error, text, {id(error)})

    @classmethod
    def _of(cls, error: BaseException, text: str, seen: set[int]) -> "CapturedError":
        cause = error.__cause__ if id(error.__cause__) not in seen else None
        system = error if isinstance(error, OSError) else OSError()
        return cls(
            name=type(error).__name__,
            module=type(error).__module__,
            message="\n".join(_lines(error))[:_LONGEST],
            code=error.code if isinstance(error, UserError) else None,
            base=next((kind.__name__ for kind in type(error).__mro__ if _may_be_base(kind)), "Exception"),
            notes=tuple(str(note) for note in getattr(error, "__notes__", None) or ()),
            errno=system.errno,
            filename=None if system.filename is None else str(system.filename),
            frames=tuple(
                (f.filename, f.lineno or 0, f.name, f.line or "") for f in traceback.extract_tb(error.__traceback__)
            ),
            cause=cls._of(cause, "", seen | {id(cause)}) if cause is not None else None,
            traceback=text,
        )

    def as_exception(self) -> Exception:
        """To be raised in the rank."""
        if self.code is not None:
            return UserError(self.message, self.code)
        kinds = (LoadingFailed, getattr(builtins, self.base))
        kind = type(self.name, kinds, {"__module__": self.module})
        error = kind(self.message, list(self.frames))
        if isinstance(error, OSError):
            error.errno, error.filename = self.errno, self.filename
        for note in self.notes:
            error.add_note(note)
        error.__cause__ = self.cause.as_exception() if self.cause else None
        if self.traceback:
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            first.__cause__ = Original(self.traceback)
        return error


@contextmanager
def failures() -> Iterator[None]:
    """Raises whatever a user's code raises in the block, even SystemExit or StopIteration, as an ordinary exception."""
    failure = None
    try:
        yield
    except BaseException as error:
        failure = CapturedError.of(error)
    if failure is not None:
        raise failure.as_exception()


@contextmanager
def noted(doing: str, indices: Sequence[int] | np.ndarray, dataset: Any) -> Iterator[None]:
    """Adds a note to an exception that names its samples."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        some = ", ".join(f"{index:,}" for index in indices[:8]) + (" …" if len(indices) > 8 else "")
        error.add_note(f"while {doing} sample{'s' * (len(indices) > 1)} {some} of {type(dataset).__name__}")
        raise


def _may_be_base(kind: type) -> bool:
    builtin = kind.__module__ == "builtins" and issubclass(kind, Exception)
    return builtin and not issubclass(kind, _OF_THEIR_OWN)


def _lines(error: BaseException) -> Iterator[str]:
    """The message of an error, and below it, indented, those of a group's members."""
    try:
        yield str(error)
    except Exception as broken:
        yield f"(its text could not be had: {type(broken).__name__})"
    for member in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        first, *more = "\n".join(_lines(member)).splitlines() or [""]
        yield f"  {type(member).__name__}: {first}"
        yield from (f"    {line}" for line in [*more, *getattr(member, "__notes__", ())])
