"""What a checkpoint says of itself: manifest.json, with size and SHA-256 of every file and of itself. No torch here."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.config.strict_json import tagged, untagged
from dist_train.files import Bytes, sync_folder, write_synced

FORMAT = 1
MANIFEST = "manifest.json"


class DamagedCheckpoint(Exception):
    """Says which file is bad, and how."""


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every byte is what was written.

    Raises:
        DamagedCheckpoint: when a file is missing, added, short, long, changed, or of another checkpoint.
    """
    manifest = read_manifest(path)
    try:
        if f"step-{manifest['step']:08d}" != path.name:
            raise DamagedCheckpoint(f"{MANIFEST}: of step {manifest['step']}")
        present = set(os.listdir(path)) - {MANIFEST}
        for name in sorted(set(manifest["files"]) | present):
            if name not in present:
                raise DamagedCheckpoint(f"{name}: missing")
            if name not in manifest["files"]:
                raise DamagedCheckpoint(f"{name}: does not belong to it")
            _check_file(path / name, manifest["files"][name])
    except (OSError, ValueError, KeyError, TypeError) as error:  # written by nobody we know, or gone meanwhile
        raise DamagedCheckpoint(f"unreadable ({type(error).__name__})") from None
    return manifest


def write(folder: Path, files: Mapping[str, Bytes], facts: Mapping[str, Any]) -> None:
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
    """SHA-256 of the manifest without its own."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        DamagedCheckpoint: when the manifest is not what was written, or of another version.
    """
    if (path / MANIFEST).is_symlink():
        raise DamagedCheckpoint(f"{MANIFEST}: not a regular file")
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
    return untagged(manifest)


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
