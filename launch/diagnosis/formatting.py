"""How files and ranks are written where a person reads them."""

import linecache
import re
import site
import sysconfig
from pathlib import Path

from dist_train.rundir.records import Frame

from ..children import LAUNCH, ROOT
from ..console import ranges

_OURS = tuple(str(folder) for folder in (LAUNCH, LAUNCH.resolve(), ROOT / "dist_train"))
_WRAPPER = "/launch/rank/collectives.py"
"""Whose frame is between a call of torch.distributed and where it came from, and says nothing of either."""
_FRAME = re.compile(r'^\s+File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.+)$')


def frame_at(file: str, line: int, function: str) -> Frame:
    """With its line of source, as the file is now."""
    return Frame(file=file, line=line, function=function, text=linecache.getline(file, line).strip())


def stacks_in(lines: list[str]) -> list[tuple[str, list[Frame]]]:
    """What faulthandler wrote: of each thread the line above its stack, and its frames, the innermost first."""
    found: list[tuple[str, list[Frame]]] = []
    is_open = False
    for line in lines:
        if "(most recent call first)" in line:
            found.append((line, []))
            is_open = True
        elif is_open and (match := _FRAME.match(line)) and not match["file"].endswith(_WRAPPER):
            found[-1][1].append(frame_at(match["file"], int(match["line"]), match["function"]))
        elif not line.strip():
            is_open = False
    return found


def is_own(frame: Frame) -> bool:
    """Whether it is of the user's files: neither Python's, nor an installed package's, nor this project's."""
    folders = [sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages(), *_OURS]
    return not (frame.file.startswith("<") or "site-packages" in frame.file) and not any(
        Path(frame.file).is_relative_to(folder) for folder in folders
    )


def short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def named(ranks: list[int]) -> str:
    """`rank 3`, `ranks 0-2, 5`."""
    return f"rank{'s' * (len(ranks) > 1)} {ranges(ranks)}"
