"""The power fails during a save: every state that a disk may legally be in then has a checkpoint to go on from.

SIGKILL does not show what fsync is for: the kernel goes on to write what a dead process has left. So a real save is
watched (strace), and the disk is simulated: at every moment of the save, whatever was not yet synced may be there or
not, in every combination, and the unsynced content of a file may be whole, half or missing. Each state that comes out
is laid down as real files and read.

What is written in a file lasts once that file is synced; a name that is made, renamed or removed, once its folder is.
"""

import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dist_train.checkpoint.manifest import MANIFEST
from tests.faults.syscalls import problems
from tests.faults.tally import Order, Tally
from tests.faults.traced import STEP, STRACE, bench, sample_files

_CREATED = re.compile(r'openat\([^,]*, "([^"]+)", [A-Z_|]*O_CREAT.* = \d+<')
_WRITTEN = re.compile(r"write\(\d+<([^>]+)>.* = (\d+)$")
_SYNCED = re.compile(r"f(?:data)?sync\(\d+<([^>]+)>\)\s+= 0$")
_RENAMED = re.compile(r'rename(?:at2?)?\((?:[^",]*, )?"([^"]+)", (?:[^",]*, )?"([^"]+)".* = 0$')
_MADE = re.compile(r'mkdir(?:at)?\((?:[^",]*, )?"([^"]+)".* = 0$')
_REMOVED = re.compile(r'(?:unlink|rmdir|unlinkat)\((?:(?:AT_FDCWD|\d+)<([^>]+)>, )?"([^"]+)".* = 0$')
_MOST_STATES = 256
"""Of one moment; a save that syncs as it should leaves far fewer."""


@dataclass(eq=False)
class Node:
    """A file or a folder, by whatever name it is reached."""

    entries: dict[str, "Node"] | None = None
    content: bytes = b""

    def flat(self, prefix: str = "") -> Iterator[tuple[str, bytes | None]]:
        """(path, content) of everything below, None for a folder."""
        for name, node in sorted((self.entries or {}).items()):
            yield f"{prefix}{name}", None if node.entries is not None else node.content
            yield from node.flat(f"{prefix}{name}/")


@dataclass(kw_only=True, eq=False)
class Effect:
    """What one call changes on disk: a name in a folder, or the content of a file.

    Attributes:
        changes: names of the folder and what they mean now, None for nothing.
        begin, end: the piece of the file that is written.
    """

    node: Node
    changes: dict[str, Node | None] = field(default_factory=dict)
    begin: int = 0
    end: int = 0

    def choices(self) -> tuple[float, ...]:
        """How much of it may have reached the disk."""
        return (1.0, 0.0) if self.changes else (1.0, 0.5, 0.0)


@dataclass(kw_only=True)
class Journal:
    """A save as its effects, in order, and how many of them were made when each sync returned."""

    root: Node
    effects: list[Effect]
    synced: list[tuple[int, Node]]
    names: list[tuple[str, str]]
    """(kind, path) of each call, for the check of their order."""


def campaign(order: Order) -> Tally:
    """All states of one save, whatever `order.count` says."""
    assert STRACE is not None, "strace is missing: apt-get install strace"
    tally = Tally(campaign="power", seed=order.seed)
    with bench(order.folder, sample_files(order.dice("files").randbytes(5000))) as table:
        run_dir, log = table.copy(), order.folder / "save.strace"
        before = read_tree(run_dir / "checkpoints")
        table.calls(run_dir, log)
    journal = parse(log.read_text().splitlines(), run_dir / "checkpoints", before)
    if wrong := order_violations(journal.names):
        tally.lose(-1, "; ".join(wrong))
    states = {state: None for state in crash_states(journal)}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of syncs that prove nothing here
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory) as folder:
        for number, state in enumerate(states):
            if order.wants(number):
                tally.injections += 1
                for problem in problems(lay_down(state, Path(folder) / str(number))):
                    tally.lose(number, problem)
                shutil.rmtree(Path(folder) / str(number))
    tally.facts = {"moments": len(journal.effects) + len(journal.synced) + 1, "order violations": len(wrong)}
    return tally


# ---------------------------------------------------------------- what the save did


def read_tree(folder: Path) -> Node:
    node = Node(entries={})
    assert node.entries is not None
    for path in folder.iterdir():
        node.entries[path.name] = read_tree(path) if path.is_dir() else Node(content=path.read_bytes())
    return node


def parse(lines: list[str], folder: Path, root: Node) -> Journal:
    """Reads strace's log. `folder` is what `root` was before the save, and holds now what was saved."""
    live = _copied(root)
    journal = Journal(root=live[0], effects=[], synced=[], names=[])
    view = _View(folder, live[1], journal)
    for line in lines:
        view.take(line)
    return journal


def _copied(root: Node) -> tuple[Node, dict[Node, dict[str, Node]]]:
    """The root, and a copy of the names in each folder, to be changed while the log is read."""
    names: dict[Node, dict[str, Node]] = {root: dict(root.entries or {})}
    for node in (root.entries or {}).values():
        if node.entries is not None:
            names[node] = dict(node.entries)
    return root, names


class _View:
    """What is where while the log is read; turns calls into effects."""

    def __init__(self, folder: Path, names: dict[Node, dict[str, Node]], journal: Journal) -> None:
        self._folder, self._names, self._journal = folder, names, journal
        self._written: dict[Node, int] = {}

    def take(self, line: str) -> None:
        if match := _CREATED.match(line):
            self._create("create", match[1], Node())
        elif match := _MADE.match(line):
            self._create("mkdir", match[1], Node(entries={}))
        elif match := _WRITTEN.match(line):
            self._write(match[1], int(match[2]))
        elif match := _SYNCED.match(line):
            if (node := self._find(match[1])) is not None:
                self._journal.synced.append((len(self._journal.effects), node))
                self._journal.names.append(("sync", match[1]))
        elif match := _RENAMED.match(line):
            self._rename(match[1], match[2])
        elif match := _REMOVED.match(line):
            self._remove(str(Path(match[1] or "/") / match[2]))

    def _find(self, path: str) -> Node | None:
        """None outside of the checkpoints' folder."""
        if not Path(path).is_relative_to(self._folder):
            return None
        node = self._journal.root
        for part in Path(path).relative_to(self._folder).parts:
            node = self._names[node][part]
        return node

    def _parent(self, path: str) -> tuple[Node | None, str]:
        return self._find(str(Path(path).parent)), Path(path).name

    def _change(self, kind: str, path: str, parent: Node, changes: dict[str, Node | None]) -> None:
        for name, node in changes.items():
            if node is None:
                del self._names[parent][name]
            else:
                self._names[parent][name] = node
        self._journal.effects.append(Effect(node=parent, changes=changes))
        self._journal.names.append((kind, path))

    def _create(self, kind: str, path: str, node: Node) -> None:
        parent, name = self._parent(path)
        if parent is not None:
            if node.entries is not None:
                self._names[node] = {}
            self._change(kind, path, parent, {name: node})

    def _write(self, path: str, size: int) -> None:
        node = self._find(path)
        if node is None:
            return
        begin = self._written.get(node, 0)
        self._written[node] = begin + size
        saved = self._folder / f"step-{STEP:08d}" / Path(path).name  # nothing was changed after it was written
        node.content = saved.read_bytes()
        self._journal.effects.append(Effect(node=node, begin=begin, end=begin + size))
        self._journal.names.append(("write", path))

    def _rename(self, old: str, new: str) -> None:
        parent, name = self._parent(old)
        if parent is not None:
            assert Path(old).parent == Path(new).parent, f"renamed into another folder: {old}, {new}"
            self._change("rename", new, parent, {name: None, Path(new).name: self._names[parent][name]})

    def _remove(self, path: str) -> None:
        parent, name = self._parent(path)
        if parent is not None:
            self._change("remove", path, parent, {name: None})


def order_violations(names: list[tuple[str, str]]) -> list[str]:
    """Where a save did not sync in the order that it promises."""
    commit = next(i for i, (kind, path) in enumerate(names) if kind == "rename" and path.endswith(f"step-{STEP:08d}"))
    begun = [path for kind, path in names[:commit] if kind == "create"]
    folder = Path(begun[0]).parent
    synced = {path: i for i, (kind, path) in enumerate(names[:commit]) if kind == "sync"}
    last_write = {path: i for i, (kind, path) in enumerate(names[:commit]) if kind == "write"}
    manifest = synced.get(str(folder / MANIFEST), -1)
    wrong = [f"{path} written after its sync" for path in begun if synced.get(path, -1) < last_write[path]]
    wrong += [f"{path} synced after the manifest" for path in begun if synced.get(path, -1) > manifest]
    if not manifest < synced.get(str(folder), -1):
        wrong.append("the folder is not synced between manifest and rename")
    after = [i for i, (kind, path) in enumerate(names) if kind == "sync" and path == str(folder.parent) and i > commit]
    removed = [i for i, (kind, _) in enumerate(names) if kind in ("rename", "remove") and i > commit]
    if not after or (removed and removed[0] < after[0]):
        wrong.append("the parent is not synced between the rename and what follows")
    return wrong


# ---------------------------------------------------------------- what may be left of it


State = tuple[tuple[str, bytes | None], ...]


def crash_states(journal: Journal) -> Iterator[State]:
    """All legal ones, moment by moment; many come more than once."""
    for made in range(len(journal.effects) + 1):
        moments = {count for count, _ in journal.synced if count == made} or {made}
        for _ in moments:
            for lasting in _lasting(journal, made):
                yield from _states(journal, made, lasting)


def _lasting(journal: Journal, made: int) -> Iterator[set[Effect]]:
    """What is safe when `made` effects are made: before, between and after the syncs of that moment."""
    syncs = [(count, node) for count, node in journal.synced if count <= made]
    now = sum(1 for count, _ in syncs if count == made)
    for returned in range(len(syncs) - now, len(syncs) + 1):
        yield {effect for count, node in syncs[:returned] for effect in journal.effects[:count] if effect.node is node}


def _states(journal: Journal, made: int, lasting: set[Effect]) -> Iterator[State]:
    effects = journal.effects[:made]
    choices = [(1.0,) if effect in lasting else effect.choices() for effect in effects]
    for parts in itertools.islice(itertools.product(*choices), _MOST_STATES):
        yield _state(journal.root, effects, parts)


def _state(root: Node, effects: list[Effect], parts: tuple[float, ...]) -> State:
    """The tree after the chosen part of each effect; the original is left as it was."""
    tree: dict[Node, Node] = {}

    def copy(node: Node) -> Node:
        if node not in tree:
            tree[node] = new = Node(entries=None if node.entries is None else {}, content=node.content)
            for name, child in (node.entries or {}).items():
                assert new.entries is not None
                new.entries[name] = copy(child)
        return tree[node]

    result = copy(root)
    for effect in effects:
        if not effect.changes:
            copy(effect.node).content = b""
    for effect, part in zip(effects, parts, strict=True):
        node = copy(effect.node)
        if not effect.changes:
            piece = effect.node.content[effect.begin : effect.end]
            node.content = (node.content + bytes(effect.begin))[: effect.begin] + piece[: int(len(piece) * part)]
        elif part:
            assert node.entries is not None
            for name, child in effect.changes.items():
                if child is None:
                    node.entries.pop(name, None)
                else:
                    node.entries[name] = copy(child)
    return tuple(result.flat())


def lay_down(state: State, folder: Path) -> Path:
    """Makes it of real files."""
    folder.mkdir()
    for path, content in state:
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
    return folder
