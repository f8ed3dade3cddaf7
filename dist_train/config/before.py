"""A run directory as it was before a start: one that ends before its first step leaves nothing behind. No torch here.

Exit code 2 promises that nothing was started or written. What was written meanwhile, logs and claims, is taken back: a
directory that this start made goes again, and in one that was there each file is what it was, to the byte.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from dist_train.config.ownership import FOLDER as LEASE
from dist_train.config.ownership import current

SMALL = 64 * 1024
"""Bytes of a file that are remembered; a larger one is a log, which only grows."""
_FILES = ("config.yaml", "environment.json", "state.json", "metrics.jsonl", "samples.jsonl", "lives.jsonl", ".lock-*")
_FOLDERS = (LEASE, "generations", "logs", "checkpoints", "wandb", "tensorboard")
IN_RUN = {"": (*_FILES, *_FOLDERS), "generations": ("[0-9]*",), "logs": ("*.log", "*.log.1")}
IN_RUN |= {"wandb": ("*",), "tensorboard": ("*",), LEASE: ("*",)}
"""What a start writes, by its folder in the run directory: nobody else's files are touched."""
IN_LOG_DIR = {"": IN_RUN["logs"]}


@dataclass(frozen=True)
class _File:
    size: int
    content: bytes | str | None
    """A link's is where it points to."""


class Before:
    """How a folder is now, for `put_back`.

    Args:
        folder: which need not be there.
        written: names, by folder below it, that a start may make or change.
    """

    def __init__(self, folder: Path, written: dict[str, tuple[str, ...]] = IN_RUN) -> None:
        self._folder, self._written = folder.absolute(), written
        self._missing = [place for place in (self._folder, *self._folder.parents) if not os.path.lexists(place)]
        """What has to be made for it, the innermost first."""
        self._saved = self._checkpoints()
        self._known = {path: _remembered(path) for path in self._entries()}

    def put_back(self) -> None:
        """As far as the disk allows. Does nothing where another life has the directory by now, or where something was
        saved after all, whatever the exit code says."""
        if _is_taken(self._folder) or not self._checkpoints() <= self._saved:
            return
        if self._missing:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # another run has been made beside it
                for parent in self._missing[1:]:
                    parent.rmdir()
            return
        new = [path for path in self._entries() if path not in self._known]
        for path, file in self._known.items():
            if file is not None:
                with suppress(OSError):
                    _restore(path, file)
        for path in new:
            _remove(path)

    def _checkpoints(self) -> set[str]:
        """Those of a step; what is saved before the first one, for a rollback, holds nothing that could be lost."""
        return {path.name for path in self._folder.glob("checkpoints/step-*") if path.name != "step-00000000"}

    def remove_empty(self) -> bool:
        """For another node, which may have made the folder that the first one clears: returns whether it is gone."""
        with suppress(OSError):
            for place in self._missing:
                place.rmdir()
        return not self._missing or not self._folder.exists()

    def _entries(self) -> Iterator[Path]:
        """What there is of what a start may write; what is inside of the lease comes last."""
        for below, patterns in self._written.items():
            with suppress(OSError):
                for entry in sorted(os.scandir(self._folder / below), key=lambda entry: entry.name):
                    if any(fnmatch(entry.name, pattern) for pattern in patterns):
                        yield Path(entry.path)


def _is_taken(run_dir: Path) -> bool:
    """Whether another process has it and may live."""
    with suppress(OSError):
        claim = current(run_dir)
        owner = claim.owner if claim is not None and not claim.is_released else None
        return owner is not None and owner.pid != os.getpid() and owner.lives() is not False
    return False


def _remembered(path: Path) -> _File | None:
    """None of a folder, or what cannot be read."""
    with suppress(OSError):
        if path.is_symlink():
            return _File(0, os.readlink(path))
        if path.is_file():
            size = path.stat().st_size
            return _File(size, path.read_bytes() if size <= SMALL else None)
    return None


def _restore(path: Path, file: _File) -> None:
    if isinstance(file.content, str):
        if not path.is_symlink() or os.readlink(path) != file.content:
            _remove(path)
            path.symlink_to(file.content)
    elif file.content is None:
        if path.stat().st_size > file.size:
            os.truncate(path, file.size)
    elif not path.is_file() or path.read_bytes() != file.content:
        path.write_bytes(file.content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
