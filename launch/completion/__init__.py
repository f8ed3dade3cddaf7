"""What TAB offers in bash, zsh and fish: config keys, their values, shipped configs, runs. click does the rest.

Each TAB is a process, so nothing heavy is imported: keys and values come from the schema's file.
"""

import glob
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click import shell_completion as shells
from click.shell_completion import CompletionItem, add_completion_class

from dist_train.config import shipped
from dist_train.rundir.layout import RunDir

SHELLS = ("bash", "zsh", "fish")
Node = dict[str, Any]
"""A piece of the JSON Schema."""


class _OwnScript(shells.ShellComplete):
    def source(self) -> str:
        return script(self.name)


@add_completion_class
class _Bash(_OwnScript, shells.BashComplete):
    """Reads the line itself, up to the cursor: bash cuts words at each `=` and `:`, and replaces the last piece."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = shells.split_arg_string(line)
        self._typed = words.pop() if words and not line[-1].isspace() else ""
        return words[1:], self._typed

    def format_completion(self, item: CompletionItem) -> str:
        cuts = [self._typed.rfind(sign) for sign in "=:" if sign in os.environ["COMP_BREAKS"]]
        return f"{item.type},{item.value[max(cuts, default=-1) + 1 :]}"


@add_completion_class
class _Zsh(_OwnScript, shells.ZshComplete):
    pass


@add_completion_class
class _Fish(_OwnScript, shells.FishComplete):
    pass


def script(shell: str) -> str:
    """What one of SHELLS reads to complete `dist-train`."""
    return Path(__file__).with_name(f"dist-train.{shell}").read_text(encoding="utf-8")


def files(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return [CompletionItem(typed, type="file")]


def words(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Of `CONFIG [a.b=c]...`, and of what follows a config or a run."""
    given = [word for name in ("target", "words", "overrides") for word in _listed(context.params.get(name))]
    return (not given and _configs(typed)) or [*_overrides(typed, given)]


def config_or_run(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return _configs(typed) + runs(context, parameter, typed)


def runs(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The runs under runs/, the newest first; elsewhere, folders."""
    found = sorted(glob.glob("runs/*/*"), key=os.path.getmtime, reverse=True)
    known = [*("auto", "none") * (parameter.name == "resume"), *(path for path in found if RunDir(Path(path)).is_run())]
    fitting = [CompletionItem(path) for path in known if path.startswith(typed)]
    return fitting or [CompletionItem(typed, type="dir")]


def _configs(typed: str) -> list[CompletionItem]:
    found = [name for name in shipped.names() if name.startswith(typed)]
    for path in sorted(glob.glob(f"{glob.escape(typed)}*")):
        found += [f"{path}/"] if os.path.isdir(path) else [path] * path.endswith((".yaml", ".yml"))
    return [CompletionItem(word) for word in found]


def _listed(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()


def _overrides(typed: str, given: Sequence[str]) -> Iterator[CompletionItem]:
    """Keys down to the next dot or `=`; behind a `=` the values that are known, or files where any text may stand."""
    schema = json.loads(shipped.SCHEMA.read_text(encoding="utf-8"))
    del schema["properties"]["extends"]  # which is for files
    path, equals, value = typed.partition("=")
    *above, last = path.split(".")
    keys = _keys(above, schema, () if last == "name" else given)
    if equals:
        kinds = [kind for node in keys.get(last, ()) for kind in _alternatives(node, schema)]
        texts = dict.fromkeys(text for kind in kinds for text in _values(kind) if text.startswith(value))
        yield from (CompletionItem(f"{path}={text}") for text in texts)
        if any(
            kind.get("type") == "string" and not kind.keys() & {"pattern", "examples", "enum", "const"}
            for kind in kinds
        ):
            yield CompletionItem(typed, type="file")
        return
    for key, nodes in keys.items():
        if key.startswith(last):
            below = [kind.get("properties") for node in nodes for kind in _alternatives(node, schema)]
            signs = {sign for kind in below for sign in ("=" if kind is None else "=." if "name" in kind else ".")}
            said = nodes[0].get("description", "").partition(". ")[0].removesuffix(".")
            yield from (CompletionItem(".".join([*above, key]) + sign, help=said) for sign in sorted(signs))


def _keys(path: Sequence[str], schema: Node, given: Sequence[str]) -> dict[str, list[Node]]:
    """The keys below a path; of a component whose name is chosen, its own."""
    above = _keys(path[:-1], schema, given).get(path[-1], []) if path else [schema]
    sections = [kind for node in above for kind in _alternatives(node, schema)]
    if len(path) == 1 and (name := _chosen(path[0], given)):
        sections = [section for section in sections if name in _values(section)] or sections
    keys = defaultdict(list)
    for section in sections:
        for key, node in section.get("properties", {}).items():
            keys[key].append(node)
    return keys


def _alternatives(node: Node, schema: Node) -> Iterator[Node]:
    """What a value may be, with references followed."""
    node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for part in node.get("anyOf", ()):
        yield from _alternatives(part, schema)
    if "anyOf" not in node:
        yield node


def _values(kind: Node) -> list[str]:
    """Those that can be listed; of a component, its names."""
    kind = kind.get("properties", {}).get("name", kind)
    known: dict[str, list[Any]] = {"boolean": [True, False], "null": [None]}
    found = kind.get("enum") or ([kind["const"]] if "const" in kind else known.get(kind.get("type", ""), []))
    return [value if isinstance(value, str) else json.dumps(value) for value in found]


def _chosen(section: str, given: Sequence[str]) -> str | None:
    """The component that an override chooses, or the config, where its name comes first."""
    for word in reversed(given):
        key, equals, value = word.partition("=")
        if equals and key in (section, f"{section}.name"):
            return value
    path = Path(shipped.meant_by(given[0])) if given else Path()
    path = RunDir(path).config if path.is_dir() else path
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(rf"^{section}:\s*(?:#.*\s*)?\{{?\s*name:\s*[\"']?([\w.:]+)", text, re.MULTILINE)
    return found[1] if found else None
