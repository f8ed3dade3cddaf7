"""`a.b=c` on the command line: read as YAML 1.2 and applied to the tree of the files."""

from collections.abc import Sequence

from dist_train.config.problems import Problem, printable, shown
from dist_train.config.tree import Location, Tree, component_name, is_component_path, problem_at
from dist_train.config.yaml12 import MAX_DEPTH, Unreadable, parse_yaml

_AFTER_ALL_FILES = 1_000_000
Override = tuple[tuple[str, ...], Tree]
"""The path of the key, and its value."""


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
    return ((*path, "name") if is_component_path(path) and isinstance(tree.value, str) else path), tree


def apply(root: Tree, overrides: Sequence[Override], problems: list[Problem]) -> None:
    """Applies the overrides to the tree of the files, in place. One that does not fit is added to `problems`.

    Those that choose a component come first: they decide which other keys exist.
    """
    for path, value in sorted(overrides, key=lambda override: not _chooses_component(override[0])):
        node = root
        for depth, name in enumerate(path):
            key = _key_in(node, name)
            if key is None:
                problems.append(problem_at(value.place, path, _no_way_down(node, path, depth)))
                break
            above, child = path[:depth], node.child(key)
            if key == "name" and is_component_path(above) and component_name(node, above) != value.value:
                node.value.clear()  # the other keys belong to the old component
            if depth == len(path) - 1:
                node.value[key] = Tree(value.value, value.place, value.place)
            elif child is None or child.value is None:
                node.value[key] = Tree({}, value.place, value.place)
            node = node.value[key]


def _chooses_component(path: tuple[str, ...]) -> bool:
    return is_component_path(path) or (path[-1] == "name" and is_component_path(path[:-1]))


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
