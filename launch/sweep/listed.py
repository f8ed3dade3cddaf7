"""A file of points: a YAML or JSON list of mappings, or plain text with one line of overrides a point."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_train.config.problems import Problem
from dist_train.config.tree import Location, Tree
from dist_train.config.yaml12 import Unreadable, parse_yaml
from dist_train.errors import UserError

MAX_BYTES = 1024 * 1024
_AS_YAML = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class ListedPoint:
    """One point as written in the file."""

    overrides: dict[str, str]
    where: str
    """`points.yaml:3:1`"""


def wrong(message: str, where: str = "command line", key: str = "", order: tuple[int, ...] = ()) -> Problem:
    return Problem(where=where, key=key, message=message, order=order)


def read_list(path: Path, problems: list[Problem]) -> list[ListedPoint]:
    """The points; mistakes are added to `problems`.

    Raises:
        UserError: when there is no such file, or it holds no text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"--list {path}: larger than {MAX_BYTES // 1024} KiB: no list of points")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--list {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--list {path}: not UTF-8; save it as UTF-8") from None
    before = len(problems)
    entries = [*(_of_yaml if path.suffix in _AS_YAML else _of_lines)(path, text, problems)]
    if not entries and len(problems) == before:
        problems.append(wrong("has no points", str(path)))
    return entries


# ---------------------------------------------------------------- lines


def _of_lines(path: Path, text: str, problems: list[Problem]) -> Iterator[ListedPoint]:
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}:{number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            problems.append(wrong(f"{error}".lower(), where, order=(number,)))
            continue
        overrides: dict[str, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key in overrides:
                message = f"{key} is there twice" if equals else f"'{word}' is no override such as optimizer.lr=0.1"
                problems.append(wrong(message, where, order=(number,)))
            overrides[key] = value
        if words:
            yield ListedPoint(overrides, where)


# ---------------------------------------------------------------- YAML and JSON


def _of_yaml(path: Path, text: str, problems: list[Problem]) -> Iterator[ListedPoint]:
    try:
        tree = parse_yaml(text, lambda line, column: Location((0, line, column), f"{path}:{line}:{column}"), problems)
    except Unreadable as error:
        problems.append(error.problem)
        return
    if not isinstance(tree.value, list):
        problems.append(wrong("is not a list of points such as `- {optimizer.lr: 0.1, seed: 1}`", str(path)))
        return
    for item in tree.value:
        if isinstance(item.value, dict):
            yield ListedPoint(dict(_flat(item, "")), item.place.text)
        else:
            message = "a point is a mapping such as `{optimizer.lr: 0.1}`"
            problems.append(wrong(message, item.place.text, order=item.place.order))


def _flat(tree: Tree, prefix: str) -> Iterator[tuple[str, str]]:
    """`{optimizer: {lr: 0.1}}` as optimizer.lr=0.1, so that a section's other keys stay; JSON is YAML 1.2."""
    if isinstance(tree.value, dict) and (tree.value or not prefix):
        for key, child in tree.value.items():
            yield from _flat(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        plain = tree.plain()
        is_word = isinstance(plain, str) and plain.isascii() and plain.replace("_", "").isalpha()
        reserved = is_word and plain.lower() in ("true", "false", "null")
        yield prefix, plain if is_word and not reserved else json.dumps(plain, ensure_ascii=False)
