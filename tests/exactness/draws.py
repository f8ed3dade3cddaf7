"""Whole configs at random, and what a draw may be; covering.py has a set with every pair in it.

Not by hypothesis, which makes most examples by changing those before: 11 of 70 asked for nccl, where 1 of 25 is meant.
"""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from pydantic import ValidationError

from dist_train.config.schema import RunConfig, _tag
from tests.exactness.dimensions import ABSENT, PRESENT, Dimension, dimensions
from tests.exactness.tables import ARGS, CLASSES, FIXED, ONCE, UNFIT

Draw = dict[str, Any]
"""The level of every dimension that exists in this config, by its path."""
SELDOM = 25
"""One in so many random draws takes a value of ONCE."""


@cache
def known() -> dict[str, Dimension]:
    return {dimension.path: dimension for dimension in dimensions()}


def config_of(draw: Draw) -> dict[str, Any]:
    """The nested mapping that a YAML file of this draw holds.

    A component's keys stand in a draw below its name, in a config beside it; items of `augment` are a list there.
    """
    found: dict[str, Any] = {"augment": []}
    for path, level in draw.items():
        parent, _, key = path.rpartition(".")
        if level == ABSENT:
            continue
        section = _section(found, parent)
        if level == PRESENT and parent == "augment":
            found["augment"].append({"name": key})
        elif level == PRESENT:
            section[key] = {}
        elif is_component(path):
            section[key] = {} if f"{path}.{level}.name" in known() else {"name": level}
        else:
            section[key] = level
    _fill_in(found)
    return found


def is_component(path: str) -> bool:
    """Whether the key chooses among sections by their name."""
    return path in _components()


@cache
def _components() -> set[str]:
    asked = {dimension.needs[0] for dimension in known().values() if dimension.needs}
    return {path for path in asked if PRESENT not in known()[path].levels}


def _section(config: dict[str, Any], path: str) -> Any:
    at: Any = config
    walked = ""
    for part in path.split(".") if path else []:
        walked = f"{walked}.{part}" if walked else part
        if isinstance(at, list):
            at = next(item for item in at if item["name"] == part)
        elif walked.count(".") == 1 and is_component(walked.rpartition(".")[0]):
            continue
        else:
            at = at.setdefault(part, {})
    return at


def _fill_in(config: dict[str, Any]) -> None:
    """Fixed values, and the arguments that go with a name."""
    for path, (value, _) in FIXED.items():
        owner, _, key = path.rpartition(".")
        top, _, name = owner.partition(".")
        if value is None:
            continue
        if top in config and is_component(top) and name:
            if _label(config[top]) == name:
                config[top][key] = value
        elif owner:
            _section(config, owner)[key] = value
        else:
            config[key] = value
    classes = number_of_classes(config["data"])
    for section in ("data", "model", "task", "optimizer"):
        if args := ARGS.get(config[section].get("name")):
            config[section]["args"] = {key: classes if value == CLASSES else value for key, value in args.items()}


def _label(section: dict[str, Any]) -> str:
    return str(_tag(section))


def number_of_classes(data: dict[str, Any]) -> int:
    if data["name"] == "synthetic":
        return data["classes"]
    return {"digits": 10, "image_folder": 2}.get(data["name"], 4)


# ---------------------------------------------------------------- what a draw may be


def exists(dimension: Dimension, draw: Draw) -> bool:
    """Whether the choice that it stands under was made."""
    return dimension.needs is None or draw.get(dimension.needs[0]) == dimension.needs[1]


def fits(draw: Draw) -> bool:
    """Whether no two values contradict each other, as far as is known so far."""
    for left, first, right, second, _ in UNFIT:
        if _begins(draw.get(left), first) and _begins(draw.get(right), second):
            return False
    return True


def _begins(value: Any, wanted: Any) -> bool:
    return value == wanted or (isinstance(value, str) and isinstance(wanted, str) and value.startswith(wanted))


def is_valid(draw: Draw) -> bool:
    try:
        RunConfig.model_validate(config_of(draw))
    except ValidationError:
        return False
    return fits(draw)


def build(choose: Callable[[Dimension, Draw], Any]) -> Draw:
    """A draw, dimension by dimension; `choose` gives a level of each that exists, knowing what was chosen before."""
    draw: Draw = {}
    for dimension in known().values():
        if exists(dimension, draw):
            draw[dimension.path] = choose(dimension, draw)
    return draw


@cache
def general(path: str) -> str:
    """The path without the name of a component: `optimizer.weight_decay` of all of them."""
    parts = path.split(".")
    return ".".join([parts[0], *parts[2:]]) if len(parts) > 2 and is_component(parts[0]) else path


# ---------------------------------------------------------------- at random


def at_random(count: int, seed: int) -> list[Draw]:
    """`count` draws, each independent of the others; the same for the same seed."""
    chance, found = random.Random(seed), []
    while len(found) < count:
        draw = build(lambda dimension, _: chance.choice(_often(dimension, chance)))
        if is_valid(draw):
            found.append(draw)
    return found


def _often(dimension: Dimension, chance: random.Random) -> list[Any]:
    seldom = [level for level in dimension.levels if is_seldom(dimension, level)]
    often = [level for level in dimension.levels if level not in seldom]
    return seldom if seldom and (not often or chance.randint(1, SELDOM) == SELDOM) else often


def is_seldom(dimension: Dimension, level: Any) -> bool:
    return any(level is value and general(dimension.path) == path for path, value in ONCE)
