"""The schema in plain words: which keys a section has, which components there are, what a value may be."""

from collections.abc import Iterator
from typing import Any

from dist_train.config.json_schema import schema_document
from dist_train.config.problems import alternatives
from dist_train.config.torchvision_names import TorchvisionName

Node = dict[str, Any]
"""A piece of the JSON Schema."""

TORCHVISION_NAMES: tuple[str, ...] = TorchvisionName.__args__  # type: ignore[attr-defined]


def root() -> Node:
    return schema_document()


def resolved(node: Node) -> Node:
    """The definition that a `$ref` points to, or the node itself."""
    reference = node.get("$ref")
    return schema_document()["$defs"][reference.rsplit("/", 1)[1]] if reference else node


def options(node: Node) -> list[Node]:
    """The alternatives of a value, without null, which only says that it may be omitted."""
    node = resolved(node)
    parts = [resolved(part) for part in node.get("anyOf", [node]) if part.get("type") != "null"]
    return [option for part in parts for option in (options(part) if "anyOf" in part else [part])]


def may_be_null(node: Node) -> bool:
    return any(part.get("type") == "null" for part in resolved(node).get("anyOf", [node]))


def is_component_node(node: Node) -> bool:
    """Whether its section is one of several, chosen by a `name`."""
    return len(options(node)) > 1 and all("name" in keys(option) for option in options(node))


def keys(node: Node) -> dict[str, Node]:
    """The keys of a section."""
    return resolved(node).get("properties", {})


def names_of(section: Node) -> list[str]:
    """The names that choose this section of a component; empty for the user's own."""
    name = keys(section)["name"]
    return [name["const"]] if "const" in name else list(name.get("enum", []))


def component_names(node: Node) -> list[str]:
    """All names there are for a component."""
    return [name for option in options(node) for name in names_of(option)]


def chosen(node: Node, value: Any) -> Node | None:
    """The section of a component that `value`, a mapping with a name, belongs to."""
    name = value.get("name") if isinstance(value, dict) else None
    for option in options(node):
        names = names_of(option)
        if name in names or (not names and isinstance(name, str) and ":" in name):
            return option
    return None


def choices(node: Node) -> str:
    """The names of a component in words; torchvision's eighty are named as a whole."""
    words = [name for name in component_names(node) if name not in TORCHVISION_NAMES]
    if len(words) < len(component_names(node)):
        words.append("a model of torchvision")
    if any(not names_of(option) for option in options(node)):
        words.append("your own package.module:Thing")
    return alternatives(words)


def in_words(node: Node) -> str:
    """What a value may be: `a whole number of 1 or more, or auto`."""
    if is_component_node(node):
        return "a section with a name"
    return ", or ".join([_option_words(option) for option in options(node)] + ["null"] * may_be_null(node))


def _option_words(node: Node) -> str:
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return alternatives([str(value) for value in node["enum"]])
    if "examples" in node:
        return f"a duration such as {alternatives(node['examples'])}"
    if "title" in node:
        return node["title"]
    kind = node.get("type")
    if kind == "array":
        return _list_words(node)
    if kind in ("integer", "number"):
        return f"{'a whole number' if kind == 'integer' else 'a number'}{_range_words(node)}"
    return {"string": "text", "boolean": "true or false", "object": "a section of keys"}.get(str(kind), "any value")


def _list_words(node: Node) -> str:
    least, most = node.get("minItems"), node.get("maxItems")
    length = f" of {least}" if least and least == most else " of 1 or more" if least else ""
    items = f"a {choices(node['items'])} section" if is_component_node(node["items"]) else in_words(node["items"])
    return f"a list{length} of texts" if items == "text" else f"a list{length}, each {items}"


def _range_words(node: Node) -> str:
    """` of 1 or more`, ` from 0 to 1`, ` above 0 and below 1`; nothing if there are no bounds."""
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None:
        most = f"below {below}" if below is not None else high
        return f" of {low} or more" if most is None else f" from {low} to {most}"
    if above is not None:
        return f" above {above}" + (f" and below {below}" if below is not None else f", {high} at most" if high else "")
    return ""


def key_paths(node: Node | None = None, prefix: str = "") -> Iterator[str]:
    """All key paths outside lists, such as optimizer.lr."""
    for key, child in keys(node or root()).items():
        yield f"{prefix}{key}"
        for option in options(child):
            yield from key_paths(option, f"{prefix}{key}.") if keys(option) else ()
