"""How files and ranks are written where a person reads them."""

import linecache
import site
import sysconfig
from pathlib import Path

from dist_train.rundir.records import Frame

_HOME = Path(__file__).resolve().parents[2]


def is_foreign(file: str) -> bool:
    folders = [sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages()]
    folders += [str(_HOME / "launch"), str(_HOME / "dist_train")]
    return file.startswith("<") or "site-packages" in file or any(Path(file).is_relative_to(place) for place in folders)


def frame_at(file: str, line: int, function: str) -> Frame:
    """With its line of source, as the file is now."""
    return Frame(file=file, line=line, function=function, text=linecache.getline(file, line).strip())


def is_own(frame: Frame) -> bool:
    """Whether it is of the user's files: neither Python's, nor an installed package's, nor this project's."""
    return not is_foreign(frame.file)


def short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
