"""What can be read from a rank's log: its end, and what native code wrote as it died."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dist_train.rundir.records import Frame

from .formatting import stacks_in

_FATAL = "Fatal Python error: "
_NATIVE_STACK = re.compile(r"\s*(Exception raised from|frame #\d+:|C\+\+ CapturedTraceback|Stack from)")
_LONGEST_WORDS = 300
"""Lines that terminate's message may have: the stack of every library call is one."""


def tail(path: Path, count: int, window: int = 65_536) -> list[str]:
    """The last `count` lines of a log of any size, from the one before where it has only begun; none without a log."""
    lines: list[str] = []
    for part in (path.with_name(f"{path.name}.1"), path):
        with suppress(OSError), open(part, "rb") as log:
            log.seek(max(0, part.stat().st_size - window))
            lines += log.read().decode(errors="replace").splitlines()
    return lines[-count:]


@dataclass(frozen=True, kw_only=True)
class NativeDeath:
    """What faulthandler, and C++ before it, wrote at the end of a log."""

    frames: list[Frame]
    """Of the thread that died, the innermost first; empty where that was none of Python's."""
    waiting: list[Frame]
    """Of the main thread, where it was not the one that died."""
    what: str
    """`Segmentation fault`, `Aborted` …"""
    said: str
    """C++'s own words about an exception that nobody caught."""


def native_death(lines: list[str]) -> NativeDeath | None:
    """The last native death in a log; None where there is none."""
    begin = max((number for number, line in enumerate(lines) if line.startswith(_FATAL)), default=None)
    if begin is None:
        return None
    stacks = stacks_in(lines[begin:])
    current = next((frames for header, frames in stacks if header.startswith("Current")), [])
    others = [frames for header, frames in stacks if not header.startswith("Current")]
    what = lines[begin].removeprefix(_FATAL)
    said = " ".join(_last_words(lines[:begin]))
    return NativeDeath(frames=current, waiting=others[-1] if others else [], what=what, said=said)


def _last_words(lines: list[str]) -> list[str]:
    """Of C++'s terminate: the exception's type and what it says, up to where its own stack begins, which may take a
    hundred lines with NCCL; in its several lines, the last error of the library is among the last."""
    recent = range(max(0, len(lines) - _LONGEST_WORDS), len(lines))
    begin = max((number for number in recent if lines[number].startswith("terminate called")), default=None)
    if begin is None:
        return [line.strip() for line in lines[-12:] if "what():" in line]
    said: list[str] = []
    for line in lines[begin : begin + 12]:
        if _NATIVE_STACK.match(line) or (said and line.startswith("[rank")):
            break
        said.append(line.strip())
    return [line for line in said if line]
