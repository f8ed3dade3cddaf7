"""Reports how far this rank is to the launcher's watchdog; does nothing without a launcher."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Phase = Literal["init", "connect", "compile", "step", "evaluate", "save", "callback", "end"]
_MODULE = "_dist_train_heartbeat"
"""launch/rank/heartbeat.py puts it there."""
_step = 0
_phase: Phase = "init"
_is_muted = False


def mute() -> None:
    """For a script with a loop of its own: nobody here knows how long its phases may take."""
    global _is_muted
    _is_muted = True


def beat(phase: Phase, step: int | None = None) -> None:
    """This rank is in `phase` and makes progress; costs microseconds. Without `step`, the last one given counts."""
    global _step, _phase
    _step, _phase = _step if step is None else step, phase
    writer = _writer()
    if writer is not None:
        writer.beat(phase, _step)


@contextmanager
def during(phase: Phase) -> Iterator[None]:
    """This rank is in `phase` inside the block, and then again in the one before."""
    before = _phase
    beat(phase)
    yield
    beat(before)


def set_aside(number: int) -> None:
    """What this thread, or this child process, does is no work of the rank's: it does so in a stuck one."""
    writer = sys.modules.get(_MODULE)
    if writer is not None:
        writer.set_aside(number)  # type: ignore[attr-defined]


def stacks() -> tuple[str, int] | None:
    """Where this rank writes its stacks, and the signal that asks for them; None where nobody would."""
    writer = _writer()
    return None if writer is None else (str(writer.stacks), int(writer.signal))


def _writer() -> Any:
    return None if _is_muted else sys.modules.get(_MODULE)
