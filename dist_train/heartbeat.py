"""Reports how far this rank is to the launcher's watchdog; does nothing without a launcher."""

import sys
from typing import Any, Literal

Phase = Literal["init", "connect", "compile", "step", "evaluate", "save", "end"]
_step = 0
_work = 0.0


def add_work(seconds: float) -> None:
    """This rank has worked that long on the current step without waiting for another rank."""
    global _work
    _work += seconds


def finish_step(step: int, microbatches: int) -> None:
    """A beat, with the time that the work took per microbatch, since ranks may have more or fewer of them."""
    global _work
    witness = _witness()
    if witness is not None and microbatches:
        witness.work(_work / microbatches)
    _work = 0.0
    beat("step", step)


def beat(phase: Phase, step: int | None = None) -> None:
    """This rank is in `phase` and makes progress; costs microseconds. Without `step`, the last one given counts."""
    global _step
    _step = _step if step is None else step
    witness = _witness()
    if witness is not None:
        witness.beat(phase, _step)


def stacks() -> tuple[str, int] | None:
    """Where this rank writes its stacks, and the signal that asks for them; None where nobody would."""
    witness = _witness()
    return None if witness is None else (str(witness.stacks), int(witness.signal))


def _witness() -> Any:
    return sys.modules.get("_dist_train_witness")  # launch/rank/heartbeat.py put it there
