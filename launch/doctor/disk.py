"""Tests the run directory's file system by doing there what a training does, and /dev/shm."""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dist_train.report.words import holding_in_words, size
from dist_train.rundir.files import NO_LINKS, sync_folder, write_synced

from .finding import Finding, ok, problem, warning

_CONTENT = bytes(range(256)) * 256
"""64 KiB: more than a config, a lease and the first line of metrics."""
_CLOCK_TOLERANCE_S = 2.0
"""How far a file server's clock may be from ours."""
_SHM_ENOUGH = 2**30
"""Bytes of /dev/shm that are enough for any loader here; containers come with 64 MiB."""
_SHM_LEAST = 2**20
_MAKE_ROOM = "make room there, or set run_root to a disk with room"
SHM = Path("/dev/shm")
_COSTS = {
    "locks": "two launchers on one host might take the same run: start a run once only",
    "syncs of folders": "a power loss may take the newest checkpoint, and leaves the one before",
}
"""What a run can do without, and what that costs."""


def existing(folder: Path) -> Path:
    """The folder, or the nearest parent that exists."""
    places = (folder, *folder.absolute().parents)
    return next(place for place in places if place.exists())


def run_directory(folder: Path) -> list[Finding]:
    """Creates, syncs, renames and locks files where runs are kept, and removes them again."""
    place, failing = existing(folder), "create a folder"
    try:
        probing = tempfile.TemporaryDirectory(prefix=".dist-train-probe-", dir=place, ignore_cleanup_errors=True)
        with probing as probe:
            failing = "write"
            return [_works(folder, place, Path(probe)), _clock(place, Path(probe))]
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = _MAKE_ROOM if is_full else "set run_root (or --run-dir) to a folder that you may write to"
        text = f"cannot {failing} in {place}: {error.strerror}"
        return [problem("run directory", text, advice, folder=str(folder), probed=str(place), errno=error.errno)]


def _works(folder: Path, place: Path, probe: Path) -> Finding:
    failed = [what for what, works in _abilities(probe) if not works]
    facts = {"folder": str(folder), "probed": str(place)}
    if not failed:
        return ok("run directory", f"{folder}: files are created, synced, renamed and locked as they should", **facts)
    text = f"{place}: {' and '.join(failed)} do not work there"
    if _COSTS.keys() >= set(failed):
        return warning("run directory", text, "; ".join(_COSTS[what] for what in failed), **facts, failed=failed)
    advice = "checkpoints would not be safe there: set run_root to another file system"
    return problem("run directory", text, advice, **facts, failed=failed)


def _abilities(probe: Path) -> Iterator[tuple[str, bool]]:
    """The operations that checkpoints and leases rely on, and whether each works.

    Raises:
        OSError: when not even a file can be written.
    """
    begun, final = probe / ".tmp-a", probe / "a"
    write_synced(begun, _CONTENT)
    yield "exclusive files", not _succeeds(lambda: open(begun, "xb").close())
    os.rename(begun, final)
    yield "renames", final.read_bytes() == _CONTENT and not begun.exists()
    yield "renames of folders", _renames_folders(probe)
    yield "syncs of folders", sync_folder(probe)
    yield "exclusive links", _links_are_exclusive(probe, final)
    yield "locks", _locks_exclude(probe / "lock")


def _renames_folders(probe: Path) -> bool:
    """A checkpoint's folder gets its final name in one step, and never replaces another."""
    new, old = probe / "new", probe / "old"
    for folder in (new, old):
        folder.mkdir()
        (folder / "file").touch()
    return not _succeeds(lambda: new.rename(old)) and _succeeds(lambda: new.rename(probe / "newer"))


def _links_are_exclusive(probe: Path, file: Path) -> bool:
    """A lease's number is given out only once; a file system without links relies on exclusive files instead."""
    try:
        os.link(file, probe / "link")
    except OSError as error:
        return error.errno in NO_LINKS
    return not _succeeds(lambda: os.link(file, probe / "link"))


def _locks_exclude(path: Path) -> bool:
    with open(path, "a") as first, open(path, "a") as second:
        return _locks(first) and not _locks(second)


def _locks(file: IO) -> bool:
    return _succeeds(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _clock(place: Path, probe: Path) -> Finding:
    """The only clock that all nodes of a job share is that of the run's file system."""
    before = time.time()
    (probe / "now").touch()
    stamp, after = (probe / "now").stat().st_mtime, time.time()
    away = stamp - before if stamp < before else max(0.0, stamp - after)
    facts = {"seconds_away": round(away, 3), "probed": str(place)}
    if abs(away) > _CLOCK_TOLERANCE_S:
        text = f"{abs(away):.1f} s {'behind' if away > 0 else 'ahead of'} that of the file system of {place}"
        advice = "times of logs and runs will mislead: set it (chronyc tracking, timedatectl)"
        return warning("clock", text, advice, **facts)
    return ok("clock", f"agrees with the file system of {place}", **facts)


# ---------------------------------------------------------------- room


def room(folder: Path, *, each: int | None, kept: int) -> Finding:
    """Whether there is room for `kept` checkpoints of `each` bytes and one more that is being written."""
    place = existing(folder)
    stat = os.statvfs(place)
    free = stat.f_bavail * stat.f_frsize
    facts = {"free": free, "checkpoint": each, "kept": kept, "files_free": stat.f_favail if stat.f_files else None}
    if stat.f_files and stat.f_favail == 0:
        text = f"no file can be made on the disk of {place}: it is out of inodes"
        return problem("disk", text, _MAKE_ROOM, **facts)
    text = f"{size(free)} free for {folder}"
    if each is None:
        return ok("disk", text, **facts)
    if free < each:
        return problem("disk", f"{text}, and a checkpoint is {size(each)}", _MAKE_ROOM, **facts)
    needed = each * (kept + 1)
    text += f", {kept} checkpoints of {size(each)} and one in the making are {size(needed)}"
    if free < needed:
        return warning("disk", text, "make room, or lower checkpoint.keep", **facts)
    return ok("disk", text, **facts)


def images(found: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether there is room for the decoded images that data.cache keeps.

    Args:
        found: one for each folder, as data/cache/survey.py has them.
    """
    needed, free = sum(max(0, one["estimated_bytes"] - one["bytes"]) for one in found), found[0]["free_bytes"]
    if needed > free:
        advice = "the rest is decoded each time: set data.cache.folder to a disk with room"
        return warning("image cache", holding_in_words(found), advice, folders=list(found))
    return ok("image cache", holding_in_words(found), folders=list(found))


def checkpoint_bytes(checkpoint: Path) -> int:
    """Bytes of an existing checkpoint, which may be removed meanwhile."""
    total = 0
    for path in checkpoint.glob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def shared_memory(*, workers: bool, nccl: bool) -> Finding:
    """/dev/shm carries batches from loading processes, and NCCL's data between GPUs; checkpoints do not need it."""
    topic = "shared memory"
    if not SHM.is_dir():
        return (problem if workers or nccl else warning)(topic, "there is no /dev/shm", "mount a tmpfs there")
    total, _, free = shutil.disk_usage(SHM)
    text = f"{size(free)} of {size(total)} free in /dev/shm"
    facts = {"size": total, "free": free}
    if free >= _SHM_ENOUGH or not (workers or nccl):
        return ok(topic, text, **facts)
    wants = " and ".join(["the loading processes hand batches over there"] * workers + ["NCCL uses it"] * nccl)
    advice = "remove what fills it, or start the container with --shm-size=8g (or loader.workers=0)"
    return (problem if free < _SHM_LEAST else warning)(topic, f"{text}: {wants}", advice, **facts)
