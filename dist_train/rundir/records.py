"""The launcher's small JSON files. A reader sees the old content or the new, never half of either."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_train.rundir import reading
from dist_train.rundir.reading import is_number

MOST = 64 * 2**20
"""Bytes of the largest file that is read: a verdict of many ranks, with all their stacks."""


def write_json(path: Path, content: Any) -> None:
    """Replaces `path` in one step. Not synced: after a power loss nobody asks for these."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.write_text(json.dumps(content) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The content, or None where there is no such file, or no JSON in it, or more than any of ours has."""
    try:
        return reading.read_json(path, MOST)
    except (OSError, ValueError):
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none of a line that a crash cut off, or where there is no file."""
    rows = []
    try:
        lines = reading.read_bytes(path, MOST).splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = reading.parse_json(line)
        except ValueError:
            continue
        rows += [row] * isinstance(row, dict)
    return rows


def read_object(path: Path) -> dict[str, Any]:
    """The content where it is an object, else an empty one."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def state_of(run_dir: Path) -> dict[str, Any]:
    """What a run's state.json says, as far as it makes sense."""
    found = read_object(run_dir / "state.json")
    return {key: value for key, value in found.items() if key not in _FITS or _FITS[key](value)}


def _is_step(value: Any) -> bool:
    return value is None or is_number(value)


def _is_best(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    number = value.get("value")
    is_float = isinstance(number, float) or is_number(number, -(2**63))
    return is_float and is_number(value.get("step")) and isinstance(value.get("metric"), str)


_FITS: dict[str, Callable[[Any], bool]] = {
    "status": lambda value: isinstance(value, str) and value.isidentifier() and len(value) < 20,
    "step": _is_step,
    "total_steps": _is_step,
    "best": _is_best,
    "updated": lambda value: isinstance(value, float) or is_number(value),
    "metrics": lambda value: value is None or isinstance(value, dict),
}


def is_process(facts: object) -> bool:
    """Whether what a file says could be what `myself` wrote."""
    if not isinstance(facts, dict) or not isinstance(facts.get("host"), str):
        return False
    return is_number(facts.get("pid"), 1, 2**31) and is_number(facts.get("started"))


def read_all(folder: Path) -> list[Any]:
    """The content of every JSON file in a folder, by name; empty where there is no folder."""
    found = (read_json(path) for path in sorted(folder.glob("[!.]*.json")))
    return [content for content in found if content is not None]
