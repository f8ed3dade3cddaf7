"""Checkpoints on disk: complete exactly when the directory has its final name, verified before use. No torch here.

step-00001200/ holds the files and manifest.json, which names the size and SHA-256 of each, and its own. It is written
as .tmp-…-step-00001200, every file synced, the manifest last, the directory synced, the lease checked, the directory
renamed, its parent synced. See docs/checkpoints.md.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.checkpoint.manifest import MANIFEST, DamagedCheckpoint, verify, write_files
from dist_train.errors import DiskError, ResumeError, UserError, telling_why
from dist_train.rundir.files import Bytes, remove_tree, sync_file, sync_folder
from dist_train.rundir.layout import REPLACED, RunDir, checkpoint_name
from dist_train.rundir.lease import Fence
from dist_train.rundir.reading import MAX_JSON, read_bytes, read_json

ROOM = 2.2
"""A checkpoint's size times this should be free before the first save: it is written beside the one it replaces."""
_NAME = re.compile("step-([0-9]{8,12})")


@dataclass(frozen=True, kw_only=True)
class VerifiedCheckpoint:
    """A checkpoint that was verified.

    Attributes:
        skipped: one line for each newer checkpoint that is damaged: its name, and what is wrong with it.
    """

    path: Path
    manifest: dict[str, Any]
    skipped: tuple[str, ...] = ()

    @classmethod
    def at(cls, path: Path, *, skipped: Sequence[str] = (), by_name: bool = True) -> "VerifiedCheckpoint":
        """Verifies it. Raises DamagedCheckpoint; `by_name` as verify takes it."""
        return cls(path=path, manifest=verify(path, by_name=by_name), skipped=tuple(skipped))


LACKS_EVALUATION = "lacks_evaluation"
"""In a manifest: the evaluation of its step is still to be done."""


class CheckpointStore:
    """The checkpoints of one run, in one folder. Can be sent to another process.

    Args:
        folder: checkpoints/ of the run directory; made with the first save.
        keep: how many of the newest retention leaves, at least two.
        generation: the generation that writes.
        fence: checks before every commit that the run directory is still this session's.
        records: files that the run adds rows to. A checkpoint is committed when the rows so far are durable.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        generation: int = 0,
        fence: Fence | None = None,
        records: tuple[Path, ...] = (),
    ) -> None:
        self.folder, self._records = folder, records
        self._keep = max(2, keep)
        self._generation = generation
        self._fence = fence
        self._verified: dict[str, Any] = {}
        """What the files of each checkpoint looked like when it was read back and found sound: a change shows."""

    def path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)

    def all(self) -> list[Path]:
        """Every complete checkpoint, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), key=step_of, reverse=True)

    def save(self, step: int, files: Mapping[str, Bytes], facts: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and commits it by its rename. One that is there already under this name is kept if it is
        sound, and replaced if it is not.

        Raises:
            OSError: when the disk refuses; what was begun is removed then as far as the disk allows, and the older
                checkpoints are untouched.
            UserError: (exit 3) when the run directory belongs to another session now; nothing is committed then.
        """
        self._check_fence()
        target = self.path(step)
        session = f"{self._generation}.{self._fence.number if self._fence else 0}"
        temporary = self.folder / f".tmp-{session}-{target.name}"
        try:
            if target.exists() and self._is_sound(target) and not lacks_evaluation(target):
                return target
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
            for left in self.folder.glob(f".tmp-{session}-*"):  # a process of this session was killed in a save
                remove_tree(left)
            temporary.mkdir()
            own = {"step": step, "generation": self._generation, "saved": round(time.time(), 3)}
            write_files(temporary, files, {**own, **facts})
            for path in self._records:
                sync_file(path)
            self._commit(temporary, target)
        except OSError as error:
            with suppress(OSError):
                self._check_fence()  # whoever has taken the directory over has removed what was begun
            error.filename = error.filename or str(self.folder)
            raise
        finally:
            remove_tree(temporary)  # after the rename there is nothing
        return target

    def retain(self, best_step: int | None, also: Collection[int] = ()) -> None:
        """Removes all but the newest `keep`, the best, and those of the steps `also`; called after a save is durable.

        None is removed before two newer ones were read back and verified, in this session. A disk that refuses is
        no error: what is left over goes with a later save.

        Raises:
            UserError: (exit 3) when the run directory belongs to another session now; nothing is removed then.
        """
        with suppress(OSError):
            for path in self._superfluous({best_step, *also}):
                self._check_fence()
                remove_tree(self._set_aside(path))

    def remove_unfinished(self) -> None:
        """Removes what earlier sessions left unfinished, as far as the disk allows. A session that was taken for dead
        just before its rename has nothing left to rename then. A checkpoint whose place was not taken goes back to
        it."""
        with suppress(OSError):
            for path in self.folder.glob(".tmp-*"):
                target = path.with_name(path.name.removeprefix(REPLACED))
                if target != path and not os.path.lexists(target):
                    os.rename(path, target)
                else:
                    remove_tree(path)

    def newest(self) -> VerifiedCheckpoint | None:
        """The newest sound checkpoint, or None when there are none at all.

        Raises:
            UserError: (exit 4) when there are some, and all of them are damaged; (exit 14) when they cannot be listed.
        """
        with telling_why(f"cannot read {self.folder}", DiskError):
            found, damaged = self.newest_sound()
        if found is None and damaged:
            raise ResumeError(
                f"{self.folder}: no checkpoint can be used: {'; '.join(damaged)}. "
                "Restore one from a copy, or start anew in another directory"
            )
        return found

    def newest_sound(
        self, usable: Callable[[int], bool] = lambda step: True
    ) -> tuple[VerifiedCheckpoint | None, list[str]]:
        """The newest sound checkpoint of those whose step is `usable`, and a line for each newer one that is damaged.
        Raises OSError."""
        damaged: list[str] = []
        for path in self.all():
            if usable(step_of(path)):
                try:
                    return VerifiedCheckpoint.at(path, skipped=damaged), damaged
                except DamagedCheckpoint as damage:
                    damaged.append(f"{path.name} is damaged ({damage})")
        return None, damaged

    def short_of_room(self, size: int) -> str | None:
        """One line when the disk has less room than ROOM checkpoints of `size` bytes take; a save may still succeed."""
        place = next((p for p in (self.folder, *self.folder.absolute().parents) if p.is_dir()), self.folder)
        with suppress(OSError):
            if (free := shutil.disk_usage(place).free) < ROOM * size:
                return (
                    f"{self.folder}: {free / 1e6:,.0f} MB free, and a checkpoint takes {size / 1e6:,.0f} MB: "
                    f"saves may fail; {ROOM * size / 1e6:,.0f} MB would be enough"
                )
        return None

    def _check_fence(self) -> None:
        if self._fence is not None:
            self._fence.check()

    def _commit(self, temporary: Path, target: Path) -> None:
        """Renames it. What had the name before may be sound, so that it gets the name back when this fails."""
        self._check_fence()
        before = target.with_name(f"{REPLACED}{target.name}")
        if os.path.lexists(target):
            remove_tree(before)
            os.rename(target, before)
        try:
            self._check_fence()
            os.rename(temporary, target)
            try:
                sync_folder(self.folder)
            except OSError:  # it could be gone after a power loss, so it must not pass for saved
                os.rename(target, temporary)
                raise
        except BaseException:
            with suppress(OSError):
                os.rename(before, target)
            raise
        remove_tree(before)

    def _set_aside(self, path: Path) -> Path:
        """Renames it and returns the new name, so that a crash during the removal leaves no half checkpoint behind."""
        doomed = path.with_name(f".tmp-old-{path.name}")
        remove_tree(doomed)
        os.rename(path, doomed)
        return doomed

    def _superfluous(self, spared: Collection[int | None]) -> Iterator[Path]:
        kept, sound = 0, 0
        for path in self.all():
            if kept < self._keep or sound < 2:
                kept += 1
                sound += sound < 2 and self._is_sound(path)
            elif step_of(path) not in spared:
                yield path

    def _is_sound(self, path: Path) -> bool:
        """Reads it back, unless that was done and nothing has been touched since."""
        try:
            entries = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(path)]
            looks = sorted((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in entries)
            if self._verified.get(path.name) != looks:
                verify(path)
                self._verified[path.name] = looks
        except (DamagedCheckpoint, OSError):
            return False
        return True


def step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def lacks_evaluation(path: Path) -> bool:
    """Whether a sound checkpoint was saved when its step's evaluation had been given up."""
    return bool(read_json(path / MANIFEST, MAX_JSON).get(LACKS_EVALUATION))


def has_manifest(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def read_checked(path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """One file of a verified checkpoint, checked once more as it is read.

    Raises:
        DamagedCheckpoint: when it has changed in between.
        OSError: when it is gone, or another file.
    """
    content = read_bytes(path / name, manifest["files"][name]["size"], links=False)
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
        raise DamagedCheckpoint(f"{name}: sha256 differs")
    return content


def locate(target: Path, report: Callable[[str], None], best: bool = False) -> VerifiedCheckpoint:
    """The checkpoint that `target`, a checkpoint or a run directory, means: itself, the run's best, or its newest.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    if has_manifest(target) or _NAME.fullmatch(target.name):
        try:
            return VerifiedCheckpoint.at(target, by_name=False)
        except DamagedCheckpoint as damage:
            raise ResumeError(f"{target} is damaged ({damage})") from None
    store = CheckpointStore(RunDir(target).checkpoints)
    found = store.newest()
    if found is None:
        raise UserError(f"{target}: no checkpoint there; give a run directory or a checkpoint directory of one")
    if best and found.manifest.get("best_step") is not None:
        with suppress(DamagedCheckpoint):  # then the newest will do
            return VerifiedCheckpoint.at(store.path(found.manifest["best_step"]))
    for line in found.skipped:
        report(line)
    return found
