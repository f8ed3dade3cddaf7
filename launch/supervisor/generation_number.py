"""Which generation a start belongs to: a number that all of its nodes come to without asking each other."""

import itertools
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dist_train.rundir.reading import numbered
from dist_train.rundir.records import read_json

_WRITING_S = 2.0
"""Seconds that another node has to write the name of the start that it has claimed a number for."""


def claim(root: Path, node: str, start: str | None, facts: Mapping[str, object]) -> Path:
    """The folder of the next generation, with a place for what happens in it and `facts` of this node.

    Args:
        root: RUN/generations.
        node: name of this node in it.
        start: a name that the start has on all its nodes and never again. Without one each node counts its own
            generations, which is the same number while their number does not change.
    """
    if start is not None:
        folder = root / str(_number_of(root, start))
        _make(folder)
        _write(folder / "nodes" / f"{node}.json", json.dumps(facts))
        return folder
    taken = [int(path.name) for path in numbered(root) if (path / "nodes" / f"{node}.json").exists()]
    for number in itertools.count(max(taken, default=0) + 1):
        folder = root / str(number)
        _make(folder)
        with suppress(FileExistsError):  # another that does not know its number either, on this host
            _write(folder / "nodes" / f"{node}.json", json.dumps(facts))
            return folder
    raise AssertionError("itertools.count ends never")


def _number_of(root: Path, start: str) -> int:
    """The number that carries the start's name; the first node to come writes it there."""
    while True:
        numbers = [int(path.name) for path in numbered(root)]
        for number in numbers:
            if _name_of(root / str(number)) == start:
                return number
        used = [number for number in numbers if _is_used(root / str(number))]
        number = max(used, default=0) + 1
        (root / str(number)).mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another node was faster: with our name, most likely
            _write(root / str(number) / "start.json", json.dumps(start))
            return number


def _is_used(folder: Path) -> bool:
    return (folder / "start.json").exists() or any(folder.glob("nodes/*.json"))


def _name_of(folder: Path) -> str | None:
    path = folder / "start.json"
    deadline = time.monotonic() + _WRITING_S
    while (name := read_json(path)) is None and path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # it is being written
    return name


def _make(folder: Path) -> None:
    for part in ("nodes", "ranks", "errors"):
        (folder / part).mkdir(parents=True, exist_ok=True)


def _write(path: Path, content: str) -> None:
    """Raises FileExistsError."""
    with open(path, "x") as file:
        file.write(content)
