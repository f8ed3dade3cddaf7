"""`a.b=c` on the command line: read as YAML 1.2 and applied to the tree of the files."""

from collections.abc import Sequence
from dataclasses import dataclass

from dist_train.config.problems import Problem, printable, shown
from dist_train.config.tree import Location, Tree, component_name, is_component_path, problem_at
from dist_train.config.yaml12 import MAX_DEPTH, Unreadable, parse_yaml

_AFTER_ALL_FILES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Override:
    path: tuple[str, ...]
    tree: Tree
    switches: bool
    """Whether it chooses a component, and thereby which other keys exist."""


def parse_override(text: str, index: int, problems: list[Problem]) -> Override | None:
    """One override; None, with the problem added, if it cannot be read.

    Args:
        index: its number on the command line, for the order of problems.
    """
    place = Location((_AFTER_ALL_FILES, index, 0), "command line")
    name, equals, value = text.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or "" in path or len(path) > MAX_DEPTH:
        message = f"{shown(text)} is no override; one is written key=value, such as optimizer.lr=0.1"
        problems.append(problem_at(place, (), message))
        return None
    try:
        tree = parse_yaml(value, lambda line, column: place, problems, path)
    except Unreadable as error:
        problems.append(error.problem)
        return None
    if is_component_path(path) and isinstance(tree.value, str):
        path = (*path, "name")
    switches = is_component_path(path) or (path[-1] == "name" and is_component_path(path[:-1]))
    return Override(path=path, tree=tree, switches=switches)


def apply(root: Tree, overrides: Sequence[Override], problems: list[Problem]) -> None:
    """Applies the overrides to the tree of the files, in place. One that does not fit is added to `problems`."""
    for override in sorted(overrides, key=lambda override: not override.switches):
        problem = _write(root, override)
        if problem:
            problems.append(problem)


def _write(root: Tree, override: Override) -> Problem | None:
    node, path, place = root, override.path, override.tree.place
    for depth, name in enumerate(path):
        key = _key_in(node, name)
        if key is None:
            return problem_at(place, path, _no_way_down(node, path, depth))
        if key == "name" and is_component_path(path[:depth]):
            _drop_the_old_component(node, override, depth)
        child = node.child(key)
        if depth == len(path) - 1:
            node.value[key] = Tree(override.tree.value, place, place)
        elif child is None or child.value is None:
            node.value[key] = Tree({}, place, place)
        node = node.value[key]
    return None


def _key_in(node: Tree, name: str) -> str | int | None:
    """`name` as a key of a mapping or a position in a list; None where there is no such place."""
    if isinstance(node.value, dict):
        return name
    is_index = isinstance(node.value, list) and name.isascii() and name.isdigit() and len(name) < 6
    return int(name) if is_index and int(name) < len(node.value) else None


def _no_way_down(node: Tree, path: Sequence[str], depth: int) -> str:
    above = printable(".".join(path[:depth]))
    if not isinstance(node.value, list):
        return f"{above} is the value {shown(node.value)}, with no keys below it"
    has = f"has {len(node.value)} items, numbered from 0" if node.value else "is an empty list"
    return f"{above} {has}; there is no {printable(path[depth])}"


def _drop_the_old_component(node: Tree, override: Override, depth: int) -> None:
    if component_name(node, override.path[:depth]) != override.tree.value:
        node.value.clear()
