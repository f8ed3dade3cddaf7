"""What a sweep varies: turns `--over` and a list file into validated points, or into all problems with them.

Values are read like overrides (YAML 1.2) and separated by commas outside of quotes and brackets; `0..3` is 0, 1, 2, 3.
Several `--over`, and `--over` with a list, give every combination.
"""

import itertools
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from pydantic import ConfigDict

from dist_train.config.problems import ConfigError, Problem, printable
from dist_train.config.schema import JOB_SECTIONS, RunConfig
from dist_train.config.source import load
from dist_train.config.types import RunName

from ..console import ranges
from .listed import ListedPoint, read_list, wrong

MAX_POINTS = 10_000
"""Of one sweep; more is considered a mistake."""
FIXED = ("name", "run_root", "eval.best", "eval.best_is", *JOB_SECTIONS)
"""Keys that are the same for all points: they share one folder, one ranking and one array."""
_RANGE = re.compile(r"\s*(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})\s*")
_NUMBER = re.compile(r"[-+]?\.?[0-9][0-9.eE+-]*")
_LONGEST_VALUE, _LONGEST_NAME = 20, 80
_OPEN, _CLOSE, _QUOTES = "[{", "]}", "\"'"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: RunName
    """`003-lr0.3-seed1`: its number and what it varies. This is also the name of its folder."""
    overrides: Mapping[str, str]
    """The varied keys, with the values as given."""


def draw(
    config: str, base: Sequence[str], over: Sequence[str], listed: Path | None
) -> tuple[tuple[Point, ...], list[RunConfig]]:
    """The points, each with its validated config. Reads files and creates nothing.

    Args:
        config: a YAML file.
        base: overrides for all points.
        over: `key=value,value` of each --over.
        listed: a file with one point per entry.

    Raises:
        ConfigError: with every problem of every point.
    """
    problems: list[Problem] = []
    grid = _grid(over, problems)
    entries = read_list(listed, problems) if listed else [ListedPoint({}, "command line")]
    for entry in entries:
        problems += [
            wrong("is varied by --over, too", entry.where, key) for key in entry.overrides.keys() & grid.keys()
        ]
    count = len(entries) * math.prod(map(len, grid.values()))
    if count > MAX_POINTS:
        problems.append(wrong(f"{count:,} points; at most {MAX_POINTS:,}"))
    if problems:
        raise ConfigError(config, problems)
    drawn = [
        replace(entry, overrides={**entry.overrides, **dict(zip(grid, values, strict=True))})
        for entry in entries
        for values in itertools.product(*grid.values())
    ]
    configs = _validated(config, base, drawn)
    names = _names([entry.overrides for entry in drawn])
    points = tuple(Point(name=n, overrides=entry.overrides) for n, entry in zip(names, drawn, strict=True))
    _no_twins(config, points, configs)
    return points, configs


# ---------------------------------------------------------------- --over


def _grid(over: Sequence[str], problems: list[Problem]) -> dict[str, list[str]]:
    grid: dict[str, list[str]] = {}
    for order, text in enumerate(over):
        key, equals, values = text.partition("=")
        key = key.strip()
        found, message = split_values(values)
        if not equals or not key:
            message = f"'{printable(text)}' is not key=value,value, such as optimizer.lr=0.1,0.3"
        elif key in grid:
            message = "is there twice: give all its values in one --over"
        if message:
            problems.append(wrong(message, "--over", key if equals else "", (order,)))
        else:
            grid[key] = found
    return grid


def split_values(text: str) -> tuple[list[str], str]:
    """The values of `0.1,0.3` or `0..3`, and a message if something is wrong with them."""
    found: list[str] = []
    for part in _split(text):
        limits = _RANGE.fullmatch(part)
        if not part.strip():
            return [], f"has an empty value in '{printable(text)}'; an empty text is written ''"
        if not limits:
            found.append(part.strip())
            continue
        low, high = int(limits[1]), int(limits[2])
        if high < low or high - low >= MAX_POINTS:
            limits_of_a_range = f"the first number is the smaller one, and at most {MAX_POINTS:,} between"
            return [], f"{part.strip()} is no range: {limits_of_a_range}"
        found += map(str, range(low, high + 1))
    return found, ""


def _split(text: str) -> list[str]:
    """Splits at the commas outside of quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if char == "," and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES and not parts[-1].strip(" [{,:"):  # as in YAML, a quote inside a word is text
            quote = char
        else:
            depth += (char in _OPEN) - (char in _CLOSE and depth > 0)
        parts[-1] += char
    return parts


# ---------------------------------------------------------------- validation


def _validated(config: str, base: Sequence[str], drawn: Sequence[ListedPoint]) -> list[RunConfig]:
    configs: list[RunConfig] = []
    found: dict[Problem, list[int]] = {}
    for number, entry in enumerate(drawn):
        try:
            configs.append(load(config, [*base, *as_arguments(entry.overrides)]))
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(_placed(problem, entry), []).append(number)
    if found:
        raise ConfigError(config, [_of_points(problem, numbers, len(drawn)) for problem, numbers in found.items()])
    differing = [key for key in FIXED if any(attrgetter(key)(each) != attrgetter(key)(configs[0]) for each in configs)]
    if differing:
        message = "is the same for all points of a sweep: set it once, behind the config"
        raise ConfigError(config, [wrong(message, key=key) for key in differing])
    return configs


def as_arguments(overrides: Mapping[str, str]) -> list[str]:
    """The overrides as written on the command line."""
    return [f"{key}={value}" for key, value in overrides.items()]


def _placed(problem: Problem, entry: ListedPoint) -> Problem:
    """Locates a problem in the list file if the point's own overrides caused it."""
    own = any(f"{problem.key}.".startswith(f"{key}.") for key in entry.overrides)
    return replace(problem, where=entry.where) if own and problem.where == "command line" else problem


def _of_points(problem: Problem, numbers: list[int], of: int) -> Problem:
    which = f" (point{'s' * (len(numbers) > 1)} {ranges(numbers)})" if len(numbers) < of else ""
    return replace(problem, message=f"{problem.message}{which}")


def _no_twins(config: str, points: Sequence[Point], configs: Sequence[RunConfig]) -> None:
    first: dict[str, Point] = {}
    problems = [
        wrong(f"{_said(point)} is the same run as {_said(other)}: give each once")
        for point, each in zip(points, configs, strict=True)
        if (other := first.setdefault(each.model_dump_json(), point)) is not point
    ]
    if problems:
        raise ConfigError(config, problems)


def _said(point: Point) -> str:
    return f"point {int(point.name.partition('-')[0])} ({printable(shlex.join(as_arguments(point.overrides)))})"


# ---------------------------------------------------------------- names


def varied(points: Iterable[Mapping[str, str]]) -> list[str]:
    """The keys whose values differ between points, in the order given."""
    points = list(points)
    keys = dict.fromkeys(key for point in points for key in point)
    return [key for key in keys if len({point.get(key) for point in points}) > 1]


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each key that is unique among the keys: `optimizer.lr` is lr."""

    def shortest(key: str) -> str:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
        return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)

    return {key: shortest(key) for key in keys}


def _names(points: Sequence[Mapping[str, str]]) -> list[str]:
    short = short_keys(varied(points))
    digits = max(3, len(str(len(points) - 1)))
    return [_name(f"{number:0{digits}d}", point, short) for number, point in enumerate(points)]


def _name(number: str, point: Mapping[str, str], short: Mapping[str, str]) -> str:
    parts = [number]
    for key, name in short.items():
        if key in point:
            value = _plain(point[key])[:_LONGEST_VALUE]
            parts.append(f"{_plain(name)}{'' if _NUMBER.fullmatch(value) else '-'}{value}")
    return "-".join(parts)[:_LONGEST_NAME].rstrip(".-")


def _plain(text: str) -> str:
    """The text with every character that a run's name may not contain replaced by a dash."""
    return re.sub(r"-?[^A-Za-z0-9._-]+-?", "-", text.replace("+", "")).strip("-")
