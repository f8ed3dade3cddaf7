"""The launcher's small JSON files. A reader sees the old content or the new, never half of either."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Replaces `path` in one step. Not synced: after a power loss nobody asks for these."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.write_text(json.dumps(content) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The content, or None where there is no such file or no JSON in it."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none of a line that a crash cut off, or where there is no file."""
    rows = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] * isinstance(row, dict)
    return rows


def read_all(folder: Path) -> list[Any]:
    """The content of every JSON file in a folder, by name; empty where there is no folder."""
    found = (read_json(path) for path in sorted(folder.glob("[!.]*.json")))
    return [content for content in found if content is not None]
