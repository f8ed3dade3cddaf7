"""YAML 1.2 (core schema) read into a tree that knows where every key and value stands.

PyYAML reads YAML 1.1, in which `1e-3` is text, `off` a boolean, `012` ten and `12:30` a number, and the last of two
equal keys wins silently. Here plain values mean what YAML 1.2.2, section 10.3 says, and equal keys are a problem.
Nothing is ever constructed from a tag: the tree holds only text, numbers, booleans, null, lists and mappings. A file
that is expensive to read (aliases of aliases, deep nesting) is refused early.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from dist_train.config.problems import Problem, printable
from dist_train.config.tree import KeyPath, Location, Tree, problem_at

MAX_DEPTH = 32
MAX_NODES = 5_000
MAX_NUMBER_LENGTH = 100


class Unreadable(Exception):
    """The text cannot be read as a tree, because of this problem."""

    def __init__(self, place: Location, key: KeyPath, message: str) -> None:
        super().__init__(message)
        self.problem = problem_at(place, key, message)


# ---------------------------------------------------------------- what a plain scalar means

_STANDARD = "tag:yaml.org,2002:"
_PATTERNS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


_CONSTRUCT: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _integer,
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}


_TAGS = {"mapping": {"map"}, "sequence": {"seq"}, "scalar": {"str", "merge", *_CONSTRUCT}}
"""By the kind of a node, the tags that are read."""


# ---------------------------------------------------------------- composing


class CoreComposer(yaml.BaseLoader):
    """PyYAML's reader up to nodes, with limits; its constructor is not used. Plain text means what the core schema of
    YAML 1.2 says, and `<<` what it does in YAML 1.1, since everybody uses it."""

    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes += 1
        too_many = self.nodes > MAX_NODES
        if too_many or self.depth >= MAX_DEPTH:
            problem = f"more than {MAX_NODES:,} values" if too_many else f"nested more than {MAX_DEPTH} levels deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, (_pattern, _first) in _PATTERNS.items():
    CoreComposer.add_implicit_resolver(_STANDARD + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


_ADVICE = {
    "'\\t'": "a tab; YAML indents with spaces",
    "mapping values are not allowed": "a second ': ' in one line, or a wrong indentation; quote text with ': ' in it",
    "could not find expected ':'": "a line without a colon, where `key: value` is expected",
    "expected a single document": "a second document begins here (---); a config is one document",
    "expected <block end>": "the indentation fits no line above",
    "found undefined alias": "an alias (*) of an anchor (&) that does not exist; text that begins with * needs quotes",
    "expected ',' or": "a list or mapping in brackets that is not closed, or a missing comma",
    "expected the node content": "a value is missing here, or a bracket is not closed",
    "cannot start any token": "a character that no plain text may begin with; put the text in quotes",
    "expected alphabetic or numeric character": "text that begins with & or * needs quotes",
}
"""PyYAML's messages, in words for somebody who does not know its parser."""


def _advice(error: yaml.MarkedYAMLError) -> str:
    said = " ".join(filter(None, [error.context, error.problem]))
    return next((advice for part, advice in _ADVICE.items() if part in said), f"not YAML: {printable(said, 200)}")


def parse_yaml(text: str, source: Callable[[int, int], Location], problems: list[Problem], key: KeyPath = ()) -> Tree:
    """The tree of a text with one YAML document.

    Args:
        source: makes a location from a line and a column, both counted from 1.
        problems: receives problems of single keys and values; such a value becomes null.
        key: the key path of the document.

    Raises:
        Unreadable: when the text cannot be read.
    """
    start = source(1, 1)
    try:
        node = CoreComposer(text).get_single_node()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = source(before.count("\n") + 1, error.position - before.rfind("\n"))
        raise Unreadable(place, key, f"a character that YAML does not allow: {error.character:#x}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = source(mark.line + 1, mark.column + 1) if mark else start
        raise Unreadable(place, key, _advice(error)) from None
    except (ValueError, OverflowError):  # PyYAML lets chr() fail on "\UFFFFFFFF"
        raise Unreadable(start, key, "an escape that stands for no character") from None
    if node is None:
        return Tree(None, start, start)
    return _Builder(source, problems).tree(node, key, source(node.start_mark.line + 1, node.start_mark.column + 1), 0)


# ---------------------------------------------------------------- from nodes to the tree


@dataclass
class _Builder:
    source: Callable[[int, int], Location]
    problems: list[Problem]
    built: int = field(default=0, init=False)

    def tree(self, node: yaml.Node, key: KeyPath, key_place: Location, depth: int) -> Tree:
        place = self._place(node)
        self.built += 1
        if self.built > MAX_NODES or depth > MAX_DEPTH:  # an alias may hold aliases, or itself
            raise Unreadable(place, key[:1], f"aliases (*) that expand to more than {MAX_NODES:,} values")
        if node.tag.removeprefix(_STANDARD) not in _TAGS[node.id]:
            tag = printable(node.tag.replace(_STANDARD, "!!"))
            message = f"tags such as {tag} are not read here: a config holds text, numbers, lists and mappings"
            return Tree(self._add(node, key, message), place, key_place)
        build = {"mapping": self._mapping, "sequence": self._sequence, "scalar": self._scalar}[node.id]
        return Tree(build(node, key, depth), place, key_place)

    def _place(self, node: yaml.Node) -> Location:
        return self.source(node.start_mark.line + 1, node.start_mark.column + 1)

    def _add(self, node: yaml.Node, key: KeyPath, message: str) -> Any:
        """Reports a problem of a value, which is then null."""
        self.problems.append(problem_at(self._place(node), key, message))

    def _sequence(self, node: yaml.SequenceNode, key: KeyPath, depth: int) -> Any:
        return [self.tree(item, (*key, i), self._place(item), depth + 1) for i, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, key: KeyPath, depth: int) -> Any:
        entries: dict[str, Tree] = {}
        for key_node, value_node in node.value:
            name = None if _is_merge(key_node) else self._name(key_node, key)
            if name in entries:
                first = entries[name].key_place.text.rsplit(":", 2)
                line = f", first in line {first[1]}" if len(first) == 3 else ""
                self._add(key_node, (*key, name), f"given twice{line}")
            elif name is not None:
                entries[name] = self.tree(value_node, (*key, name), self._place(key_node), depth + 1)
        for name, tree in self._merged(node, key, depth):
            entries.setdefault(name, tree)
        return entries

    def _merged(self, node: yaml.MappingNode, key: KeyPath, depth: int) -> Iterator[tuple[str, Tree]]:
        """The entries that `<<` brings; a mapping's own keys win over them, and an earlier mapping over a later."""
        for merge, value in node.value:
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not _is_merge(merge):
                continue
            for part in parts:
                tree = self.tree(part, key, self._place(merge), depth + 1)
                if isinstance(tree.value, dict):
                    yield from tree.value.items()
                else:
                    self._add(part, (*key, "<<"), "needs a mapping, or a list of mappings")

    def _name(self, node: yaml.Node, key: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            return self._add(node, key, "a key is text, not a list or a mapping")
        if node.tag != _STANDARD + "str":
            name = printable(node.value)
            return self._add(node, (*key, name), f"a key is text: write '{name}' in quotes")
        return self._text(node, key)

    def _scalar(self, node: yaml.ScalarNode, key: KeyPath, depth: int) -> Any:
        kind = node.tag.removeprefix(_STANDARD)
        if kind in ("str", "merge"):
            return self._text(node, key)
        if len(node.value) > MAX_NUMBER_LENGTH:
            return self._add(node, key, f"a number of {len(node.value):,} characters")
        try:
            return _CONSTRUCT[kind](node.value)
        except (ValueError, KeyError):  # only where the tag is written out: !!int abc
            return self._add(node, key, f"'{printable(node.value)}' is no {kind}")

    def _text(self, node: yaml.ScalarNode, key: KeyPath) -> str | None:
        if _CONTROL.search(node.value):
            return self._add(node, key, f"a control character in the text '{printable(node.value)}'")
        return node.value


def from_plain(value: Any, place: Location, problems: list[Problem], key: KeyPath = ()) -> Tree:
    """The tree of a value from JSON, with the limits that a document has.

    Raises:
        Unreadable: when it exceeds them.
    """
    left = [MAX_NODES]

    def tree(value: Any, key: KeyPath) -> Tree:
        left[0] -= 1
        if left[0] < 0 or len(key) > MAX_DEPTH:
            raise Unreadable(place, key[:1], f"more than {MAX_NODES:,} values, or {MAX_DEPTH} levels")
        if isinstance(value, str) and _CONTROL.search(value):
            problems.append(problem_at(place, key, f"a control character in the text '{printable(value)}'"))
            value = None
        elif isinstance(value, dict):
            value = {name: tree(item, (*key, name)) for name, item in value.items() if _is_fine(name, key)}
        elif isinstance(value, list):
            value = [tree(item, (*key, number)) for number, item in enumerate(value)]
        return Tree(value, place, place)

    def _is_fine(name: str, key: KeyPath) -> bool:
        if bad := _CONTROL.search(name):
            problems.append(problem_at(place, key, f"a control character in the key '{printable(name)}'"))
        return not bad

    return tree(value, key)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Harmful in names and paths: to a terminal, a batch script, a file system."""


def _is_merge(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _STANDARD + "merge"
