"""manifest.json, which describes a checkpoint: size and SHA-256 of every file, and of itself. No torch here."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.config.problems import printable, shown
from dist_train.rundir.files import Bytes, sync_folder, write_synced
from dist_train.rundir.reading import MAX_JSON, Odd, is_hollow, is_number, open_regular, parse_json, read_bytes
from dist_train.rundir.strict_json import tagged, untagged

FORMAT = 1
MANIFEST = "manifest.json"


class DamagedCheckpoint(Exception):
    """Says which file is bad, and how."""


def verify(path: Path, *, by_name: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint whose every byte is what was written.

    Args:
        by_name: its folder must have the name that it was saved under; that of a copy may be another.

    Raises:
        DamagedCheckpoint: when a file is missing, added, short, long, changed, or of another checkpoint.
    """
    manifest = read_manifest(path)
    if by_name and f"step-{manifest['step']:08d}" != path.name:
        raise DamagedCheckpoint(f"{MANIFEST}: of step {manifest['step']}")
    try:
        present = set(os.listdir(path)) - {MANIFEST}
    except OSError as error:  # it was removed in the meantime
        raise DamagedCheckpoint(f"unreadable ({error.strerror})") from None
    for name in sorted(set(manifest["files"]) | present):
        if name not in present:
            raise DamagedCheckpoint(f"{name}: missing")
        if name not in manifest["files"]:
            raise DamagedCheckpoint(f"{printable(name)}: does not belong to it")
        _check_file(path / name, manifest["files"][name])
    return manifest


def write_files(folder: Path, files: Mapping[str, Bytes], facts: Mapping[str, Any]) -> None:
    """Writes and syncs the files of a checkpoint, the manifest last, and the folder. Raises OSError."""
    entries = {}
    for name, content in files.items():
        write_synced(folder / name, content)
        entries[name] = {"size": memoryview(content).nbytes, "sha256": hashlib.sha256(content).hexdigest()}
    manifest = tagged({"format": FORMAT, **facts, "files": entries})
    manifest["sha256"] = _digest(manifest)
    write_synced(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    sync_folder(folder)


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its `sha256` entry."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        DamagedCheckpoint: when the manifest is not what was written, or of another version.
    """
    try:
        text = read_bytes(path / MANIFEST, MAX_JSON, links=False).decode()
        manifest = parse_json(text)
        # Written and read in one form only, so that no byte of it can change unnoticed.
        sound = json.dumps(manifest, indent=1) == text and manifest["sha256"] == _digest(manifest)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{MANIFEST}: missing") from None
    except Odd as error:
        raise DamagedCheckpoint(f"{MANIFEST}: {error.strerror}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{MANIFEST}: unreadable ({type(error).__name__})") from None
    if not sound:
        raise DamagedCheckpoint(f"{MANIFEST}: sha256 differs")
    if (format_ := manifest.get("format")) != FORMAT:
        raise DamagedCheckpoint(f"{MANIFEST}: format {shown(format_)}, this version reads {FORMAT}")
    if (wrong := _wrong(manifest)) is not None:
        raise DamagedCheckpoint(f"{MANIFEST}: no checkpoint has such a value for {wrong}")
    return untagged(manifest)


_OBJECTS = ("config", "machine", "data", "code", "metrics")
_COUNTS = ("generation", "world_size", "global_batch", "samples_seen")
_HASH = re.compile("[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""The name of a file, in the checkpoint's own folder."""


def _wrong(manifest: Mapping[str, Any]) -> str | None:
    """The first key with a value that no training writes. The manifest's SHA-256 shows only that no bit has flipped."""
    files, step, saved = manifest.get("files"), manifest.get("step"), manifest.get("saved", 0)
    if not is_number(step, 0, 10**12):
        return "step"
    if not isinstance(saved, int | float) or not 0 <= saved < 10**11:
        return "saved"
    if manifest.get("best_step") is not None and not is_number(manifest["best_step"], 0, 10**12):
        return "best_step"
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        return "files"
    if not isinstance(manifest.get("torch", ""), str):
        return "torch"
    counts = next((key for key in _COUNTS if not is_number(manifest.get(key, 0))), None)
    return counts or next((key for key in _OBJECTS if not isinstance(manifest.get(key, {}), dict)), None)


def _is_entry(name: str, entry: Any) -> bool:
    if not isinstance(entry, dict) or not _NAME.fullmatch(name) or name == MANIFEST:
        return False
    digest = entry.get("sha256")
    return is_number(entry.get("size")) and isinstance(digest, str) and _HASH.fullmatch(digest) is not None


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        with os.fdopen(open_regular(path, links=False), "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != expected["size"]:
                raise DamagedCheckpoint(f"{path.name}: {size} bytes, {expected['size']} were written")
            if is_hollow(file.fileno()):
                raise DamagedCheckpoint(f"{path.name}: {size} bytes, and nearly all of them a hole")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedCheckpoint(f"{path.name}: {error.strerror}") from None
    if digest != expected["sha256"]:
        raise DamagedCheckpoint(f"{path.name}: sha256 differs")
