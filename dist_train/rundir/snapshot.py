"""A run directory as it was before a start: one that ends before its first step leaves nothing behind. No torch here.

Exit code 2 promises that nothing was started or written. What was written meanwhile, logs and claims, is taken back by
its name: what this start made goes again, and what was there is what it was, to the byte. Others may write in the same
folders, or have put something into one that this start made: whatever is not known to be of this start stays.
"""

import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from dist_train.rundir.codec import read_records
from dist_train.rundir.files import remove_tree, replacing
from dist_train.rundir.layout import FIRST_NODE, TRACKERS, GenerationDir, RunDir, checkpoint_name
from dist_train.rundir.ownership import FOLDER as LEASE
from dist_train.rundir.ownership import current
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.runs import checkpoint_names

SMALL = 64 * 1024
"""Bytes of a file that are remembered; a larger one is a log, which only grows."""
_FILES = r"config\.yaml|environment\.json|state\.json|metrics\.jsonl|samples\.jsonl|lives\.jsonl"
_LOGS = r"rank\d+\.log(\.1)?|(agent|preload)(-.+)?\.log"
IN_RUN = {"": rf"{_FILES}|\.tmp-({_FILES})(-.*)?|\.lock-.*", "generations": r"\d+", "logs": _LOGS}
IN_RUN |= {"checkpoints": r"step-0{8}|\.tmp-.*"}
IN_RUN |= {LEASE: r"\d{8,}|\.tmp-.*", **{folder: "|".join(names) for folder, names in TRACKERS.items()}}
"""What a start writes, by its folder in the run directory: nobody else's files are touched."""
IN_LOG_DIR = {"": _LOGS}


_Entry = str | bytes | int | None
"""What is remembered of an entry: where a link points to, the content of a small file, the size of a large one; None of
a folder, and of what cannot be read."""


class FolderSnapshot:
    """How a folder is now, for `restore`.

    Args:
        folder: which need not be there.
        written: patterns of names, by folder below it, that a start may make or change.
    """

    def __init__(self, folder: Path, written: dict[str, str] = IN_RUN) -> None:
        self._folder, self._written = folder.absolute(), written
        places = (*(self._folder / name for name in written if name), self._folder, *self._folder.parents)
        self._missing = [place for place in places if not os.path.lexists(place)]
        """What has to be made, the innermost first."""
        self._saved = self._checkpoints()
        self._known = {path: _remembered(path) for path in self._entries()}
        self._begun = {path for path in self._known if not _has_first_node(path)}
        """Generations among them that the first node has not joined: another node was faster to make this start's."""

    def look_again(self) -> None:
        """Once the folder is ours: what another start has made or changed since is not for this one to take back."""
        self._saved = self._checkpoints()
        for path in self._entries():
            if not _is_claim(path):
                self._known[path] = _remembered(path)

    def restore(self) -> None:
        """As far as the disk allows. Does nothing where another owner has the directory by now, or where something was
        saved after all, whatever the exit code says."""
        if _is_taken(self._folder) or not self._checkpoints() <= self._saved:
            return
        joined = set(filter(_has_first_node, self._begun))
        ours = _Ours(self._folder, joined | {path for path in self._entries() if path not in self._known})
        for path in sorted({*self._known, *ours.new}, key=lambda path: (_is_claim(path), path)):
            with suppress(OSError):
                if path in ours.new and ours.made(path):
                    remove_tree(path)
                elif (was := self._known.get(path)) is not None and ours.changes(path):
                    _restore(path, was)
        self.remove_empty()

    def remove(self, names: Collection[str]) -> None:
        """What has one of these names, and was not there."""
        for path in list(self._entries()):
            if path.name in names and path not in self._known:
                with suppress(OSError):
                    path.unlink()

    def remove_empty(self) -> bool:
        """Removes the folders that were not there, as far as nothing is in them. Returns whether all are gone."""
        for place in self._missing:
            with suppress(OSError):
                place.rmdir()
        return not any(os.path.lexists(place) for place in self._missing if place.is_relative_to(self._folder))

    def _checkpoints(self) -> set[str]:
        """Those of a step; what is saved before the first one, for a rollback, holds nothing that could be lost."""
        return set(checkpoint_names(self._folder)) - {checkpoint_name(0)}

    def _entries(self) -> Iterator[Path]:
        """What there is of what a start may write."""
        for below, pattern in self._written.items():
            with suppress(OSError):
                for entry in os.scandir(self._folder / below):
                    if re.fullmatch(pattern, entry.name):
                        yield Path(entry.path)


class _Ours:
    """Which names are of this start, where other programs use such names too: those of trackers."""

    def __init__(self, folder: Path, new: set[Path]) -> None:
        self.new = new
        self._endings = {name: f"-{_run_id(folder / name)}" for name in TRACKERS}
        self._processes: set[tuple[object, object]] = {(socket.gethostname(), os.getpid())}
        for path in new:
            if path.parent == RunDir(folder).generations:
                ranks = read_records(ProcessId, GenerationDir(path).ranks)
                self._processes |= {(rank.host, rank.pid) for rank in ranks}

    def made(self, path: Path) -> bool:
        """Whether this start made what is new. What cannot be told is not its own."""
        if (whose := _whose(path)) == "process":
            return any(f".{host}.{pid}." in path.name for host, pid in self._processes)
        if whose == "run":
            return path.name.endswith(self._endings[path.parent.name])
        return self.changes(path)

    def changes(self, path: Path) -> bool:
        """Whether this start may have changed what was there; of all that is known it removes old claims alone."""
        if not os.path.lexists(path):
            return path.parent.name == LEASE
        if (whose := _whose(path)) == "link":
            run = Path(os.readlink(path)) if path.is_symlink() else Path()
            return any(part.endswith(self._endings[path.parent.name]) for part in run.parts)
        return whose != "process"


def _whose(path: Path) -> str:
    names = TRACKERS.get(path.parent.name, {})
    return next((whose for pattern, whose in names.items() if re.fullmatch(pattern, path.name)), "ours")


def _run_id(folder: Path) -> str:
    """A tracker's id of the run; what is in no name if it has none."""
    text = _remembered(folder / "id.txt")
    return (text.decode(errors="replace").strip() if isinstance(text, bytes) else "") or "\0"


def _is_claim(path: Path) -> bool:
    """What goes last, since it keeps others out."""
    return path.parent.name == LEASE or path.name.startswith(".lock-")


def _has_first_node(path: Path) -> bool:
    return path.parent.name == "generations" and GenerationDir(path).node(FIRST_NODE).exists()


def _is_taken(run_dir: Path) -> bool:
    """Whether another process has it and may live."""
    with suppress(OSError):
        claim = current(run_dir)
        owner = claim.owner if claim is not None and not claim.is_released else None
        return owner is not None and owner.pid != os.getpid() and owner.lives() is not False
    return False


def _remembered(path: Path) -> _Entry:
    with suppress(OSError):
        if path.is_symlink():
            return os.readlink(path)
        if path.is_file():
            size = path.stat().st_size
            return path.read_bytes() if size <= SMALL else size
    return None


def _restore(path: Path, was: str | bytes | int) -> None:
    """In one step: whoever looks meanwhile, or after a crash, finds the one content or the other."""
    if isinstance(was, int):
        if path.stat().st_size > was:
            os.truncate(path, was)
    elif _remembered(path) != was:
        with replacing(path) as temporary:
            if isinstance(was, str):
                temporary.symlink_to(was)
            else:
                temporary.write_bytes(was)
                with suppress(FileNotFoundError):
                    shutil.copymode(path, temporary)
