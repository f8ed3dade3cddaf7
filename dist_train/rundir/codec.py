"""JSON files and messages as frozen dataclasses. A reader of a file sees its old content or its new one."""

import json
import os
import types
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dist_train.rundir import reading
from dist_train.rundir.files import NO_LINKS, replacing, write_synced

MAX_RECORD = 64 * 2**20
"""Bytes of the largest file that is read: a verdict of many ranks, with all their stacks."""
T = TypeVar("T")


def write_json(path: Path, content: Any) -> None:
    """Replaces `path` in one step; a record is written as its fields. Not synced: no power loss makes it matter."""
    plain = asdict(content) if is_dataclass(content) else content  # type: ignore[arg-type]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain) + "\n")


def write_new(path: Path, content: object) -> None:
    """Makes a file with all of its content at once, where the file system has links. Synced.

    Raises:
        FileExistsError: when it is there.
        OSError: when the disk refuses; it leaves nothing then.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        write_synced(temporary, json.dumps(content).encode())
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            write_synced(path, json.dumps(content).encode())
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content, or None where there is no such file, or no JSON in it, or more than any of ours has."""
    with suppress(OSError, ValueError):
        return reading.read_json(path, MAX_RECORD)
    return None


def read_record(kind: type[T], path: Path) -> T | None:
    """A record, or None where the file holds none of that kind."""
    with suppress(ValueError):
        return decode(kind, read_json(path))
    return None


def read_records(kind: type[T], folder: Path) -> list[T]:
    """Every record of that kind in a folder, by name; empty where there is no folder."""
    found = (read_record(kind, path) for path in sorted(folder.glob("[!.]*.json")))
    return [record for record in found if record is not None]


def read_lines(kind: type[T], path: Path) -> list[T]:
    """The records of a file with one a line, without a line that a crash cut off; empty where there is no file."""
    records = []
    with suppress(OSError):
        for line in reading.read_bytes(path, MAX_RECORD).splitlines():
            with suppress(ValueError):
                records.append(decode(kind, reading.parse_json(line)))
    return records


def decode(kind: type[T], content: Any, *, lenient: bool = False) -> T:
    """`content`, which JSON has read, as a dataclass. Keys that it does not have are left out.

    Args:
        lenient: a value that does not fit is left out too, where the field has a default.

    Raises:
        ValueError: when it is no such record. Anybody may have written it.
    """
    if not isinstance(content, dict):
        raise ValueError(f"no object: {content!r:.100}")
    values = {}
    for name, (hint, is_optional) in _fields(kind).items():  # type: ignore[arg-type]
        if name not in content:
            if not is_optional:
                raise ValueError(f"{name} is missing")
            continue
        try:
            values[name] = _fitting(hint, content[name])
        except ValueError:
            if not (lenient and is_optional):
                raise
    return kind(**values)


@cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Of each field its type, and whether it may be missing."""
    hints = get_type_hints(kind)
    return {
        one.name: (hints[one.name], one.default is not MISSING or one.default_factory is not MISSING)
        for one in fields(kind)  # type: ignore[arg-type]
    }


def _fitting(hint: Any, value: Any) -> Any:
    """The value, with records inside of it made; raises ValueError where it does not fit the type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or type(value) is hint or (origin is Literal and value in inner):
        return value
    if origin in (Union, types.UnionType):
        for one in inner:
            with suppress(ValueError):
                return _fitting(one, value)
    elif origin in (list, tuple) and isinstance(value, list):
        return origin(_fitting(inner[0], item) for item in value)
    elif origin is dict and isinstance(value, dict):
        return {_fitting(inner[0], key): _fitting(inner[1], item) for key, item in value.items()}
    elif is_dataclass(hint):
        return decode(hint, value)  # type: ignore[arg-type]
    elif hint is float and type(value) is int:
        return float(value)
    raise ValueError(f"{value!r:.100} is no {hint}")
