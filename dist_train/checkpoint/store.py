"""Checkpoints on disk: complete exactly when the directory has its final name, verified before use. No torch here.

step-00001200/ holds the files and manifest.json, which names the size and SHA-256 of each, and its own. It is written
as .tmp-<generation>-step-00001200, every file synced, the manifest last, the directory synced, renamed, the parent
synced.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.config.errors import ExitCode, UserError
from dist_train.files import sync_folder, write_synced

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpoint(Exception):
    """Says which file is bad, and how."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that was verified, and what was skipped to reach it."""

    path: Path
    manifest: dict[str, Any]
    skipped: tuple[str, ...]
    """One line each: the checkpoint's name and what is wrong with it."""


class CheckpointStore:
    """The checkpoints of one run, in one folder.

    Args:
        folder: checkpoints/ of the run directory; made with the first save.
        keep: how many of the newest retention leaves, at least two.
        generation: the generation that writes.
    """

    def __init__(self, folder: Path, keep: int = 2, generation: int = 0) -> None:
        self.folder = folder
        self._keep = max(2, keep)
        self._generation = generation

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def all(self) -> list[Path]:
        """Every complete checkpoint, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), key=step_of, reverse=True)

    def save(self, step: int, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and commits it by its rename. One that is there already under this name is kept if it is
        sound, and replaced if it is not.

        Raises:
            OSError: when the disk refuses; nothing is left behind then, and the older checkpoints are untouched.
        """
        target = self.path(step)
        if target.exists():
            try:
                verify(target)
                return target
            except DamagedCheckpoint:
                shutil.rmtree(target)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".tmp-{self._generation}-{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            _write(temporary, files, {"format": FORMAT, "step": step, "generation": self._generation, **facts})
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.folder)
        return target

    def retain(self, best_step: int | None) -> None:
        """Removes all but the newest `keep` and the best; called after a save is durable."""
        newest = self.all()[: self._keep]
        for path in self.all():
            if path not in newest and step_of(path) != best_step:
                doomed = path.with_name(f".tmp-old-{path.name}")
                path.rename(doomed)  # so that a crash in the middle leaves no half checkpoint under a good name
                shutil.rmtree(doomed, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what earlier generations left unfinished."""
        if self.folder.is_dir():
            for path in self.folder.glob(".tmp-*"):
                shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> Found | None:
        """The newest sound checkpoint, or None when there are none at all.

        Raises:
            UserError: (exit 4) when there are some, and all of them are damaged.
        """
        skipped: list[str] = []
        for path in self.all():
            try:
                return Found(path, verify(path), tuple(skipped))
            except DamagedCheckpoint as damage:
                skipped.append(f"{path.name} is damaged ({damage})")
        if skipped:
            raise UserError(
                f"{self.folder}: no checkpoint can be used: {'; '.join(skipped)}. "
                "Restore one from a copy, or start anew in another directory",
                ExitCode.CANNOT_RESUME,
            )
        return None


def step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every byte is what was written.

    Raises:
        DamagedCheckpoint: when a file is missing, added, short, long, changed, or of another checkpoint.
    """
    manifest = _read_manifest(path)
    if f"step-{manifest['step']:08d}" != path.name:
        raise DamagedCheckpoint(f"{MANIFEST}: of step {manifest['step']}")
    present = {entry.name for entry in os.scandir(path)} - {MANIFEST}
    for name in sorted(set(manifest["files"]) | present):
        if name not in present:
            raise DamagedCheckpoint(f"{name}: missing")
        if name not in manifest["files"]:
            raise DamagedCheckpoint(f"{name}: does not belong to it")
        _check_file(path / name, manifest["files"][name])
    return manifest


def read(path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """One file of a verified checkpoint, checked once more as it is read.

    Raises:
        DamagedCheckpoint: when it has changed in between.
    """
    content = (path / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
        raise DamagedCheckpoint(f"{name}: sha256 differs")
    return content


def _write(folder: Path, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    entries = {}
    for name, content in files.items():
        write_synced(folder / name, content)
        entries[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {**facts, "files": entries}
    manifest["sha256"] = _digest(manifest)
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    sync_folder(folder)


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its own."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = (path / MANIFEST).read_text()
        manifest = json.loads(text)
        # Written and read in one form only, so that no byte of it can change unnoticed.
        sound = json.dumps(manifest, indent=1) == text and manifest["sha256"] == _digest(manifest)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{MANIFEST}: missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{MANIFEST}: unreadable ({type(error).__name__})") from None
    if not sound:
        raise DamagedCheckpoint(f"{MANIFEST}: sha256 differs")
    if manifest.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{MANIFEST}: format {manifest.get('format')}, this version reads {FORMAT}")
    return manifest


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    if path.is_symlink() or not path.is_file():
        raise DamagedCheckpoint(f"{path.name}: not a regular file")
    if (size := path.stat().st_size) != expected["size"]:
        raise DamagedCheckpoint(f"{path.name}: {size} bytes, {expected['size']} were written")
    if _hash_of(path) != expected["sha256"]:
        raise DamagedCheckpoint(f"{path.name}: sha256 differs")


def _hash_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedCheckpoint(f"{path.name}: {error.strerror}") from None


Report = Callable[[str], None]


def locate(target: Path, report: Report, best: bool = False) -> Found:
    """The checkpoint that `target`, a checkpoint or a run directory, means: itself, the run's best, or its newest.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    if is_checkpoint(target) or _NAME.fullmatch(target.name):
        try:
            return Found(target, verify(target), ())
        except DamagedCheckpoint as damage:
            raise UserError(f"{target} is damaged ({damage})", ExitCode.CANNOT_RESUME) from None
    store = CheckpointStore(target / "checkpoints")
    found = _best_of(store) if best else None
    found = found or store.newest()
    if found is None:
        raise UserError(f"{target}: no checkpoint there; give a run directory or a checkpoint directory of one")
    for line in found.skipped:
        report(line)
    return found


def _best_of(store: CheckpointStore) -> Found | None:
    """The best checkpoint by the newest one's account; None when it is gone or damaged."""
    newest = store.newest()
    best_step = newest.manifest.get("best_step") if newest else None
    try:
        return Found(store.path(best_step), verify(store.path(best_step)), ()) if best_step is not None else None
    except DamagedCheckpoint:
        return None
