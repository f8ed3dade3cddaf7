"""What can be read from a rank's log: its end, and what native code wrote as it died."""

import re
from dataclasses import dataclass
from pathlib import Path

_FATAL = "Fatal Python error: "
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$')


def tail(path: Path, count: int, window: int = 65_536) -> list[str]:
    """The last `count` lines of a log of any size, from the one before where it has only begun; none without a log."""
    lines = _last_lines(path, count, window)
    if len(lines) < count and path.suffix == ".log":
        lines = _last_lines(path.with_name(f"{path.name}.1"), count - len(lines), window) + lines
    return lines


def _last_lines(path: Path, count: int, window: int) -> list[str]:
    try:
        with open(path, "rb") as log:
            log.seek(max(0, path.stat().st_size - window))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


@dataclass(frozen=True, kw_only=True)
class NativeDeath:
    """What faulthandler, and C++ before it, wrote at the end of a log."""

    frames: list[dict]
    """Of the thread that died, the innermost first; empty where that was none of Python's."""
    waiting: list[dict]
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
    threads: dict[str, list[dict]] = {}
    name = ""
    for line in lines[begin:]:
        if "(most recent call first)" in line:
            name = line
            threads[name] = []
        elif (match := _FRAME.match(line)) and name:
            threads[name].append({**match.groupdict(), "text": ""})
        elif not line.strip() and name.startswith("Current"):
            name = ""
    current = next((frames for name, frames in threads.items() if name.startswith("Current")), [])
    others = [frames for name, frames in threads.items() if not name.startswith("Current")]
    before = lines[max(0, begin - 12) : begin]
    said = [line.strip() for line in before if "what():" in line or line.startswith("terminate called")]
    what = lines[begin].removeprefix(_FATAL)
    return NativeDeath(frames=current, waiting=others[-1] if others else [], what=what, said=" ".join(said))
