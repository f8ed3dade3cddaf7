"""From a YAML file and `a.b=c` overrides to a RunConfig, or to the list of all their problems.

The order of precedence: the files under `extends`, in their order, then the file itself, then the overrides.

- Mappings are merged key by key, lists and single values replace each other.
- A section of a component (data, model, task, optimizer, schedule) whose `name` differs from the one it goes on top of
  replaces it whole: the other keys there belong to another component.
- A task, optimizer or schedule without a `name` is the default one.

Overrides: `optimizer.lr=0.1`, `augment.0.padding=2` for items of lists, `model=mlp` in short for `model.name=mlp`. The
value is YAML 1.2. Components are switched before the other overrides are applied, whatever their order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dist_train.config.explain import explain_errors
from dist_train.config.overrides import apply, parse_override
from dist_train.config.problems import ConfigError, Problem, did_you_mean, shown
from dist_train.config.schema import RunConfig
from dist_train.config.tree import Location, Tree, merge, name_components, problem_at
from dist_train.config.yaml12 import Unreadable, from_plain, parse_yaml

MAX_BYTES = 256 * 1024
MAX_FILES = 64
RunConfig.model_rebuild()  # here, once for all ranks that are forked from this process


def load(path: str | Path, overrides: Sequence[str] = (), *, recorded: bool = False) -> RunConfig:
    """The config of a file with `overrides` (`a.b=c`) on top.

    Reads the files and does nothing else: creates nothing, imports no component, needs no torch.

    Args:
        recorded: it came with a run, and must be complete: it extends no other file.

    Raises:
        ConfigError: with every problem of the files and of the overrides, each with its place.
    """
    path = Path(path)
    problems: list[Problem] = []
    files = _Files(problems, recorded)
    tree = files.read(path, Location((0, 0, 0), str(path)), ())
    return _validated(str(path), tree, overrides, problems)


def load_plain(content: Any, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a checkpoint's manifest, within the limits that a file has.

    Args:
        content: as JSON has it.
        where: its file, for messages.

    Raises:
        ConfigError: as `load` does.
    """
    problems: list[Problem] = []
    try:
        tree = _mapping(from_plain(content, Location((0, 0, 0), where), problems))
    except Unreadable as error:
        raise ConfigError(where, [error.problem]) from None
    return _validated(where, tree, overrides, problems)


def _validated(path: str, tree: Tree | None, overrides: Sequence[str], problems: list[Problem]) -> RunConfig:
    parsed = [override for index, text in enumerate(overrides) if (override := parse_override(text, index, problems))]
    if tree is None:
        raise ConfigError(path, problems)
    apply(tree, parsed, problems)
    name_components(tree)
    try:
        config = RunConfig.model_validate(tree.plain())
        if not problems:
            return config
    except ValidationError as error:
        known = [problem.key for problem in problems]  # what could not be read is null by now, and reported already
        problems += [problem for problem in explain_errors(error, tree) if not _is_below(problem.key, known)]
    raise ConfigError(path, problems)


def _is_below(key: str, known: Sequence[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in known if other)


@dataclass
class _Files:
    problems: list[Problem]
    recorded: bool = False
    opened: int = field(default=0, init=False)

    def read(self, path: Path, asked: Location, chain: tuple[Path, ...]) -> Tree | None:
        """The tree of a file on top of those it extends; None, with the problem added, if it cannot be read.

        Args:
            asked: where the file is named, for a problem of the file as a whole.
            chain: the files that led here.
        """
        try:
            tree = self._alone(path, asked, chain)
        except Unreadable as error:
            self.problems.append(error.problem)
            return None
        extends = tree.value.pop("extends", None)
        if extends is None:
            return tree
        if self.recorded:
            message = "what a run has recorded extends no other file"
            self.problems.append(problem_at(extends.place, ("extends",), message))
            return None
        items, chain = extends.value if isinstance(extends.value, list) else [extends], (*chain, path.resolve())
        layers = [*(self._parent(item, path, chain) for item in items), tree]
        readable = [layer for layer in layers if layer]
        return reduce(merge, readable) if len(readable) == len(layers) else None

    def _alone(self, path: Path, asked: Location, chain: tuple[Path, ...]) -> Tree:
        """The tree of one file."""
        key = ("extends",) if chain else ()
        order = self.opened
        self.opened += 1
        if order >= MAX_FILES:
            raise Unreadable(asked, key, f"more than {MAX_FILES} files")
        source = partial(_place, str(path), order)
        text = _text(path, asked, source, key)
        real = path.resolve()
        if real in chain:
            loop = " → ".join(file.name for file in (*chain[chain.index(real) :], real))
            raise Unreadable(asked, key, f"files that extend each other in a circle: {loop}")
        return _mapping(parse_yaml(text, source, self.problems))

    def _parent(self, item: Tree, path: Path, chain: tuple[Path, ...]) -> Tree | None:
        if isinstance(item.value, str) and item.value:
            return self.read(path.parent / os.path.expanduser(item.value), item.place, chain)
        message = f"must be a file name or a list of file names, not {shown(item.plain())}"
        self.problems.append(problem_at(item.place, ("extends",), message))
        return None


def _place(name: str, order: int, line: int, column: int) -> Location:
    return Location((order, line, column), f"{name}:{line}:{column}")


def _mapping(tree: Tree) -> Tree:
    """`tree`, if it is one of a mapping; else raises Unreadable."""
    if isinstance(tree.value, dict):
        return tree
    if tree.value is None:
        raise Unreadable(tree.place, (), "the file is empty; a config needs at least data and model")
    kind = "a list" if isinstance(tree.value, list) else f"the single value {shown(tree.value)}"
    raise Unreadable(tree.place, (), f"a config is a mapping of `key: value` lines, and this is {kind}")


def _text(path: Path, asked: Location, source: partial[Location], key: tuple[str, ...]) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        Unreadable: when there is no such file, or no text of sensible size in it.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device could be read once, or without end
            raise Unreadable(asked, key, f"{path} is {'a folder' if path.is_dir() else 'no regular file'}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise Unreadable(asked, key, f"no such file: {path}{_file_like(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(asked, key, f"cannot read {path}: {reason}") from None
    if len(data) > MAX_BYTES:
        raise Unreadable(asked, key, f"{path} is larger than {MAX_BYTES // 1024} KiB: not a config")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable(source(1, 1), (), "the file is UTF-16; save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = source(before.count(b"\n") + 1, len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1)
        raise Unreadable(place, (), f"byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8") from None


def _file_like(path: Path) -> str:
    try:
        others = [other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml")]
    except OSError:
        return f" (nor a folder {path.parent})"
    return did_you_mean(path.name, others)
