"""A config as written in its files: plain values, each with its location."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from dist_train.config.problems import Problem
from dist_train.config.schema import RunConfig

KeyPath = tuple[str | int, ...]


class Location(NamedTuple):
    """Where something is written; sorted by file, line and column, then the command line."""

    order: tuple[int, ...]
    text: str


@dataclass
class Tree:
    """A value of the file, with its own location and that of its key or list dash."""

    value: Any
    """dict[str, Tree], list[Tree], str, int, float, bool or None."""
    place: Location
    key_place: Location

    def plain(self) -> Any:
        """The value without locations."""
        if isinstance(self.value, dict):
            return {key: tree.plain() for key, tree in self.value.items()}
        if isinstance(self.value, list):
            return [tree.plain() for tree in self.value]
        return self.value

    def child(self, key: str | int) -> "Tree | None":
        """The value at `key`, or None."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        is_index = isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value)
        return self.value[key] if is_index else None

    def at(self, path: KeyPath) -> "Tree | None":
        """The value at the end of `path`, or None."""
        tree: Tree | None = self
        for key in path:
            tree = tree.child(key) if tree else None
        return tree


def problem_at(place: Location, key: KeyPath, message: str) -> Problem:
    return Problem(where=place.text, key=".".join(map(str, key)), message=message, order=place.order)


_DEFAULT_NAMES: dict[str, str | None] = {
    section: getattr(RunConfig.model_fields[section].default, "name", None)
    for section in ("data", "model", "task", "optimizer", "schedule")
}
"""The sections that are components, with the default name; data and model have none."""


def is_component_path(path: KeyPath) -> bool:
    """Whether a section with a name of its own is expected at `path`."""
    return (len(path) == 1 and path[0] in _DEFAULT_NAMES) or (len(path) == 2 and path[0] == "augment")


def component_name(tree: Tree, path: KeyPath) -> Any:
    """The name of the component that the section at `path` configures; None where it has none."""
    name = tree.child("name")
    return name.value if name else _DEFAULT_NAMES.get(str(path[0]))


def name_components(root: Tree) -> None:
    """Write the default name into the sections that leave it out."""
    for section, name in _DEFAULT_NAMES.items():
        tree = root.child(section)
        if name and tree and isinstance(tree.value, dict) and "name" not in tree.value:
            tree.value["name"] = Tree(name, tree.place, tree.key_place)


def merge(parent: Tree, child: Tree, path: KeyPath = ()) -> Tree:
    """`child` on top of `parent`, without changing either: mappings are merged key by key, all else is replaced."""
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    if (
        is_component_path(path)
        and component_name(parent, path) != component_name(child, path)
        and "name" in child.value
    ):
        return child
    entries = dict(parent.value)
    for key, tree in child.value.items():
        entries[key] = merge(entries[key], tree, (*path, key)) if key in entries else tree
    return Tree(entries, child.place, child.key_place)
