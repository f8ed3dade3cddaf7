"""What a run that is gone on with may not have where a run writes: pipes, devices, and links that lead out of it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dist_train.config import trust
from dist_train.config.problems import printable
from dist_train.config.recorded import CONFIG, has_traces
from dist_train.errors import UserError
from dist_train.rundir.layout import TRACKERS

from .console import say

DEPTH = 4
"""Folders below each other: generations/3/ranks/rank0.json."""


def refuse(folder: Path, *, trusted: bool) -> None:
    """Looks through the folder of a run that is to be gone on with. In one that no run has been in yet, links are the
    user's own.

    Args:
        trusted: --trust, which is remembered.

    Raises:
        UserError: when something in it is no file or folder, or a link out of it is not known to be the user's.
    """
    found = _links(folder)
    if not _is_new(folder):
        trust.require(found, f"going on with {folder}", given=trusted, note=say)


def remember(folder: Path) -> None:
    """That the links in a new folder are the user's."""
    if _is_new(folder):
        trust.remember(_links(folder))


def _is_new(folder: Path) -> bool:
    return not (os.path.lexists(folder / CONFIG) or has_traces(folder))


def _links(folder: Path) -> list[trust.Power]:
    links = []
    for entry in _entries(folder, DEPTH):
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not Path(target).is_relative_to(os.path.realpath(folder)):  # it leads out
                links.append(trust.Power(where=trust.LINK, what=f"{entry.path} → {target}"))
        elif not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
            mode = stat.filemode(entry.stat(follow_symlinks=False).st_mode)
            raise UserError(f"{printable(entry.path, 300)} is no file and no folder ({mode}): no run has made that")
    return links


def _entries(folder: Path, depth: int) -> Iterator[os.DirEntry[str]]:
    try:
        found = list(os.scandir(folder))
    except OSError:  # there is none yet
        return
    for entry in found:
        yield entry
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            # What is further below a tracker's folder its writers see to.
            yield from _entries(Path(entry.path), 1 if entry.name in TRACKERS else depth - 1)
