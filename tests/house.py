"""Measures the layout of the code: `python -m tests.house [CHECKOUT]` prints one line for each figure."""

import ast
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("dist_train", "launch")
DICTIONARY = "dict[str, Any]"


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    for name, value in figures(root).items():
        print(f"{name:<58}{value:>8,}" if isinstance(value, int) else f"{name:<58}{value}")


def figures(root: Path) -> dict[str, int | str]:
    """What principles of the layout can be counted, by name."""
    trees = _trees(root)
    modules = {_module(path, root): tree for path, tree in trees.items()}
    files = import_graph(root)
    twice = _defined_twice(modules)
    return {
        "lines of code (no blank, comment or docstring)": sum(_code_lines(path, tree) for path, tree in trees.items()),
        "files": sum(path.stat().st_size > 0 for path in trees),
        "files that lie flat in launch/": sum(path.parent == root / "launch" for path in trees),
        "files that lie flat in dist_train/": sum(path.parent == root / "dist_train" for path in trees),
        "files in an import circle": len(in_circles(files)),
        "folders in an import circle": len(in_circles(by_folder(files))),
        "Any": sum(
            isinstance(node, ast.Name) and node.id == "Any" for tree in trees.values() for node in ast.walk(tree)
        ),
        DICTIONARY: sum(ast.unparse(tree).count(DICTIONARY) for tree in trees.values()),
        'look-ups such as session["rank"] in launch/': sum(
            _look_ups(tree) for path, tree in trees.items() if path.is_relative_to(root / "launch")
        ),
        "private functions": sum(1 for tree in trees.values() for _ in _private(tree)),
        "private functions that are named once": sum(_named_once(tree) for tree in trees.values()),
        "public names defined in two files": len(twice),
        "of these": ", ".join(twice),
    }


def _trees(root: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for name in PACKAGES for path in sorted((root / name).rglob("*.py"))}


def import_graph(root: Path) -> dict[str, set[str]]:
    """Of each module of ours, those that it imports, also inside of its functions."""
    modules = {_module(path, root): tree for path, tree in _trees(root).items()}
    return {module: _imported(tree, module, set(modules)) for module, tree in modules.items()}


def _module(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _code_lines(path: Path, tree: ast.Module) -> int:
    """Lines with a token on them that is neither a comment nor a text that stands alone."""
    texts = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in skipped and token.type != tokenize.ENCODING:
                lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - texts)


def _imported(tree: ast.Module, module: str, known: set[str]) -> set[str]:
    """Modules of ours that are imported when this one is, or when one of its functions runs."""
    package = module if any(name.startswith(f"{module}.") for name in known) else module.rpartition(".")[0]
    found: set[str] = set()
    for node in _running(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in known else base)
    return (found & known) - {module}


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those below `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _running(node)


def by_folder(files: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between folders, where a file that lies flat in a package is one of its own."""

    def folder(module: str) -> str:
        parts = module.split(".")
        return ".".join(parts[:2])

    folders: dict[str, set[str]] = defaultdict(set)
    for module, imported in files.items():
        folders[folder(module)] |= {folder(other) for other in imported} - {folder(module)}
    return folders


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """Nodes from which a path leads back to themselves."""
    found: set[str] = set()
    rest = {node: set(targets) for node, targets in graph.items()}
    while True:
        try:
            TopologicalSorter(rest).prepare()
        except CycleError as error:
            circle = error.args[1]
            found |= set(circle)
            rest[circle[1]].discard(circle[0])
            rest[circle[0]].discard(circle[1])
        else:
            return found


def _look_ups(tree: ast.Module) -> int:
    return sum(
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
        for node in ast.walk(tree)
    )


def _private(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_") and not node.name.startswith("__"):
            yield node


def _named_once(tree: ast.Module) -> int:
    named = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    named.update(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return sum(named[function.name] == 1 for function in _private(tree))


def _defined_twice(modules: dict[str, ast.Module]) -> list[str]:
    """Classes and functions at the top of files, but a command's `main` and the like that each file of a kind has."""
    where: dict[str, set[str]] = defaultdict(set)
    for module, tree in modules.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].add(module)
    return sorted(name for name, found in where.items() if len(found) > 1 and name != "main")


if __name__ == "__main__":
    main()
