"""What there is to draw: one dimension for each key of the schema, found by walking the schema itself.

A key's values come from its type: `levels` tries a few candidates of each kind and keeps those that the type takes. So
a key that is added to the schema is drawn from that day. tests/exactness/tables.py has the keys whose type does not
say which values make sense (paths, names), each with a reason.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, TypeAdapter, ValidationError

from dist_train.config.schema import RunConfig
from dist_train.config.types import Duration
from tests.exactness.tables import FIXED, LEVELS

ABSENT = "absent"
PRESENT = "present"
_CANDIDATES: dict[Any, tuple[Any, ...]] = {
    bool: (False, True),
    int: (0, 1, 2, 3, 30),
    float: (0.0, 0.1, 0.5, 1.0),
    Duration: ("0 steps", "2 steps", "0.05 epochs", "30 min"),
}
"""Of each plain type; what a key's bounds refuse falls away."""
_MOST = 3
"""Numbers that are tried for one key."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One thing to choose.

    Attributes:
        path: of the key; a component's own keys stand below its name, `optimizer.sgd.momentum`.
        levels: the values to choose from; for a component its names.
        needs: (path, level) of the choice that this one exists under.
        choice: True for switches, names and what may be left out, of which every pair is tried; False for numbers, of
            which every value is.
    """

    path: str
    levels: tuple[Any, ...]
    needs: tuple[str, Any] | None
    choice: bool


class Undrawable(Exception):
    """A key whose type says nothing of its values and that is in no table."""


def dimensions() -> list[Dimension]:
    """Those of RunConfig; every one comes after the one that it needs.

    Raises:
        Undrawable: naming the keys.
    """
    unknown: list[str] = []
    found = list(_section(RunConfig, "", None, unknown))
    if unknown:
        raise Undrawable(f"no values are known for {', '.join(unknown)}: give them a row in tests/exactness/tables.py")
    return found


def keys() -> list[str]:
    """The path of every key, drawn or not."""
    unknown: list[str] = []
    found = [dimension.path for dimension in _section(RunConfig, "", None, unknown, everything=True)]
    return sorted({*found, *unknown})


def _section(
    section: type[BaseModel], prefix: str, needs: Any, unknown: list[str], everything: bool = False
) -> Iterator[Dimension]:
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        if path in FIXED:
            if everything:
                yield Dimension(path=path, levels=(), needs=needs, choice=False)
            continue
        if path in LEVELS:
            values = _default_first(tuple(LEVELS[path][0]), field.default)
            is_choice = any(isinstance(value, str | bool | None) for value in values)
            yield Dimension(path=path, levels=values, needs=needs, choice=is_choice)
            continue
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        try:
            for dimension in _key(path, annotation, needs, unknown, everything):
                if dimension.path == path:
                    dimension = replace(dimension, levels=_default_first(dimension.levels, field.default))
                yield dimension
        except Undrawable:
            unknown.append(path)


def _default_first(values: tuple[Any, ...], default: Any) -> tuple[Any, ...]:
    """A failing draw is made small towards the first values."""
    at = [place for place, value in enumerate(values) if value is default or str(value) == str(default)]
    return values if not at else (values[at[0]], *values[: at[0]], *values[at[0] + 1 :])


def _key(path: str, annotation: Any, needs: Any, unknown: list[str], everything: bool) -> Iterator[Dimension]:
    options = members(annotation)
    sections = [option for option in options if is_section(option)]
    plain = _plain(annotation)
    if get_origin(plain) is list and all(is_section(option) for option in members(get_args(plain)[0])):
        for option in members(get_args(plain)[0]):  # each kind of item is there or not
            at = f"{path}.{label(option)}"
            yield Dimension(path=at, levels=(ABSENT, PRESENT), needs=needs, choice=True)
            yield from _section(_plain(option), f"{at}.", (at, PRESENT), unknown, everything)
    elif len(options) == 1 and sections:
        yield from _section(_plain(options[0]), f"{path}.", needs, unknown, everything)
    elif len(sections) == 1:  # a section that may be left out
        yield Dimension(path=path, levels=(ABSENT, PRESENT), needs=needs, choice=True)
        yield from _section(_plain(sections[0]), f"{path}.", (path, PRESENT), unknown, everything)
    elif sections:
        names = tuple(label(option) for option in sections if f"{path}.{label(option)}" not in FIXED)
        yield Dimension(path=path, levels=names, needs=needs, choice=True)
        for option in sections:
            at = f"{path}.{label(option)}"
            if at not in FIXED:
                yield from _section(_plain(option), f"{at}.", (path, label(option)), unknown, everything)
            elif everything:
                yield Dimension(path=at, levels=(), needs=needs, choice=False)
    else:
        values = levels(annotation)
        if values != () and not (path.endswith(".name") and len(values) == 1):  # a component's own name
            is_choice = any(isinstance(value, str | bool | None) for value in values)
            yield Dimension(path=path, levels=values, needs=needs, choice=is_choice)


def levels(annotation: Any) -> tuple[Any, ...]:
    """Values that a key of this type takes.

    Raises:
        Undrawable: for a type that could be anything.
    """
    found: list[Any] = []
    for option in members(annotation):
        found += _of_one(option)
    return tuple(found)


def _of_one(option: Any) -> list[Any]:
    plain = _plain(option)
    if plain is type(None):
        return [None]
    if get_origin(plain) is Literal:
        return list(get_args(plain))
    if get_origin(plain) is list:
        values = _of_one(get_args(plain)[0])
        return [value for size in (1, 2, 3) for value in _taken(option, [_cycled(values, size)])][:_MOST]
    if plain not in _CANDIDATES:
        raise Undrawable
    return _taken(option, _CANDIDATES[plain])[:_MOST]


def _cycled(values: list[Any], size: int) -> list[Any]:
    return [values[place % len(values)] for place in range(size)]


def _taken(annotation: Any, candidates: Any) -> list[Any]:
    adapter = TypeAdapter(annotation)
    found = []
    for candidate in candidates:
        try:
            adapter.validate_python(candidate)
        except ValidationError:
            continue
        found.append(candidate)
    return found


def members(annotation: Any) -> list[Any]:
    """The members of a union, with what is annotated to them; of any other type it itself."""
    plain = _plain(annotation)
    return list(get_args(plain)) if get_origin(plain) in (Union, types.UnionType) else [annotation]


def _plain(annotation: Any) -> Any:
    return _plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def is_section(option: Any) -> bool:
    return isinstance(_plain(option), type) and issubclass(_plain(option), BaseModel)


def label(option: Any) -> str:
    """A component's name, or what stands for its many names."""
    tags = [item.tag for item in get_args(option)[1:] if isinstance(item, Tag)]
    return tags[0] if tags else get_args(_plain(option).model_fields["name"].annotation)[0]
