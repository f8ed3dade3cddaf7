"""Prints docs/config.md, which is made from the schema: every section, key, type, default and docstring."""

import json
from collections.abc import Iterator
from typing import Any

from dist_train.config import shape

_HEAD = """# The config, key by key

[All documents](index.md) · [Glossary](glossary.md)

This page is made from the schema (`python docs/config_reference.py`), and a test checks that it is up to date. Editors
that know YAML complete and check the same keys when a file begins with `# yaml-language-server: $schema=schema.json`,
as the configs that come along do, and those that `dist-train new` writes. `dist-train config schema` prints that file.

## How a config is read

- **YAML 1.2**: `1e-3` is a number, `off` and `yes` are text, `012` is twelve. A key given twice is an error, and so is
  an unknown one. Anchors, aliases and `<<` work; tags such as `!!python/name` are refused.
- **`extends: other.yaml`**, or a list of files, begins from those files. Their paths are relative to the file that
  names them. Mappings are merged key by key; lists and single values replace. If a section data, model, task, optimizer
  or schedule changes its `name`, the other keys that it inherits are dropped: they belong to another component. The
  same goes for the command line.
- **Overrides** on the command line are `a.b=c`, with the value in YAML 1.2, on top of all files: `optimizer.lr=0.05`,
  `augment.0.padding=2` (an item of a list), `augment=[]`, `train.clip_norm=null`. `model=mlp` is short for
  `model.name=mlp`. Components are switched first, so `model.hidden=[64] model=mlp` keeps the 64. A mapping as a value
  replaces the whole section.
- **Components** (data, model, task, optimizer, schedule) are chosen by `name`. A task, optimizer or schedule without a
  name is the default one. Data, model, task and optimizer can be your own: `name: package.module:Thing`, with `args`
  for it ([bring your own](bring-your-own.md)). The package must be importable from the folder in which the command
  runs. Python's own library is refused.
- **Durations** are written with their unit: `2 epochs`, `500 steps`, `1e6 samples`, `30 s`, `30 min`, `2 h`.
- All mistakes are reported at once, with file, line, column, key, what was given and what is allowed. Nothing is
  created before a config is right.

`dist-train config show CONFIG [a.b=c …]` prints the resulting config, with every default filled in.
"""


def markdown() -> str:
    """The text of docs/config.md."""
    top = shape.keys(shape.root())
    plain = {key: node for key, node in top.items() if not _is_section(node)}
    parts = [_HEAD, "## At the top\n", _table(plain, _required(shape.root()))]
    for key, node in top.items():
        if key == "augment":
            parts += _component(key, node["items"], node.get("description", ""))
        elif shape.is_component_node(node):
            parts += _component(key, node, _default_name(node))
        elif _is_section(node):
            parts += _section(key, shape.options(node)[0])
    return "\n".join(parts)


def _is_section(node: shape.Node) -> bool:
    return bool(shape.keys(shape.options(node)[0])) or shape.is_component_node(node.get("items", {}))


def _required(section: shape.Node) -> set[str]:
    return set(shape.resolved(section).get("required", []))


def _default_name(node: shape.Node) -> str:
    default = node.get("default")
    return f"The default is `name: {default['name']}`." if default else "Always needed."


def _component(key: str, node: shape.Node, note: str) -> Iterator[str]:
    yield f"## {key}\n"
    yield f"{note}\n"
    if key == "augment":
        yield "A list; each item is one of these.\n"
    shared = _shared(node)
    if shared:
        yield f"Every {key} has these keys besides its own:\n"
        yield _table(shared, set())
    tables: dict[str, str] = {}
    nested: dict[str, shape.Node] = {}
    for option in shape.options(node):
        nested |= {name: child for name, child in shape.keys(option).items() if _is_nested(child)}
        own = {name: child for name, child in shape.keys(option).items() if name not in shared and name != "name"}
        yield from _option(key, option, _table(own, _required(option)) if own else "", tables)
    for name, child in nested.items():
        section = _with_note(child)
        yield f"### {key}.{name}\n"
        yield f"{section['description']}\n"
        yield _table(shape.keys(section), _required(section))


def _shared(node: shape.Node) -> dict[str, shape.Node]:
    """The keys that all sections of a component share, if there are several such keys."""
    first, *others = [shape.keys(option) for option in shape.options(node)]
    shared = {key: child for key, child in first.items() if all(other.get(key) == child for other in others)}
    return shared if len(shared) > 1 else {}


def _option(key: str, option: shape.Node, table: str, tables: dict[str, str]) -> Iterator[str]:
    names = shape.names_of(option)
    title = f"`{names[0]}`" if len(names) == 1 else "a model of torchvision" if names else "`package.module:Thing`"
    yield f"### {key}: {title}\n"
    yield f"{option.get('description', '')}\n"
    if len(names) > 1:
        yield f"Names: {', '.join(f'`{name}`' for name in names)}.\n"
    if table in tables:
        yield f"Keys as for {tables[table]}.\n"
    elif table:
        tables[table] = title
        yield table


def _section(key: str, section: shape.Node) -> Iterator[str]:
    yield f"## {key}\n"
    yield f"{section.get('description', '')}\n"
    own = shape.keys(section)
    yield _table({name: node for name, node in own.items() if not _is_nested(node)}, _required(section))
    for name, node in own.items():
        if _is_nested(node):
            yield from _section(f"{key}.{name}", _with_note(node))


def _is_nested(node: shape.Node) -> bool:
    return bool(shape.keys(shape.options(node)[0])) and not shape.is_component_node(node)


def _with_note(node: shape.Node) -> shape.Node:
    section = shape.options(node)[0]
    note = " Off by default." if shape.may_be_null(node) else ""
    return {**section, "description": f"{section.get('description', '')}{note}"}


def _table(keys: dict[str, shape.Node], required: set[str]) -> str:
    rows = ["| key | is | default | |", "|---|---|---|---|"]
    for name, node in keys.items():
        default = "*needed*" if name in required else _written(node.get("default"))
        rows.append(f"| `{name}` | {_cell(shape.in_words(node))} | {default} | {_cell(node.get('description', ''))} |")
    return "\n".join(rows) + "\n"


def _written(value: Any) -> str:
    """A default as YAML has it."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
