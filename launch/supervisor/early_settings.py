"""Finds variables that a program sets before it imports torch: once torch is preloaded, that is too late.

The source is read and never run. What it cannot tell for certain is taken for a setting: ranks that start by
themselves are slower, and never wrong.
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

from ..scheduler import VARIABLES

TORCH = {"torch", "torchvision", "torchaudio"}
LATER = re.compile(
    rf"MASTER_(ADDR|PORT)|NODE_RANK|((LOCAL|GROUP|ROLE|GLOBAL)_)?(RANK|WORLD_SIZE)|TORCHELASTIC_.+|{VARIABLES}"
    r"|((TORCH_)?NCCL|GLOO|UCX|TRITON|PYTORCH_.*MPS)_.+|CUDA_(VISIBLE_DEVICES|LAUNCH_BLOCKING|DEVICE_.+|MODULE_LOADING)"
    r"|TP_SOCKET_IFNAME|CUBLAS_WORKSPACE_CONFIG|TORCH_(HOME|EXTENSIONS_DIR|CUDA_ARCH_LIST)|TORCHINDUCTOR_CACHE_DIR"
    r"|PYTHON.+|(WANDB|HF|HUGGINGFACE|TRANSFORMERS|DATASETS|DIFFUSERS|TOKENIZERS|ACCELERATE|FSDP|DS|DEEPSPEED)_.+"
    r"|(COMET|MLFLOW|NEPTUNE|CLEARML|TENSORBOARD|TF|XLA|JAX|KERAS|TIMM|NLTK|RAY|VLLM|OPENAI|AZURE|OPENCV|SDL|QT)_.+"
    r"|AWS_(ACCESS|SECRET|SESSION|PROFILE|REGION|DEFAULT).*|MPLBACKEND|MPLCONFIGDIR|DISPLAY|MUJOCO_GL|PYOPENGL_PLATFORM"
)
"""Variables that are read later than torch's import, or never, by torch and by what it imports. `PYTHON…` are read
before."""
_CHANGES = {"update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__"}
_FUNCTIONS = {"putenv", "unsetenv", "load_dotenv"}
_MOST_FILES = 100


@dataclass(frozen=True, kw_only=True)
class EarlySetting:
    """A place that changes a variable; `name` is None where only running it could tell which."""

    file: Path
    line: int
    name: str | None
    is_default: bool

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line} sets {self.name or 'os.environ'} before it imports torch"


Events = Iterator[EarlySetting | None]
"""Settings in the order in which they would happen. None where torch is imported for certain: nothing later matters."""


def early_setting(program: tuple[str, ...], environment: dict[str, str]) -> EarlySetting | None:
    """The first that matters; None where there is none, and where the source cannot be read.

    Args:
        program: `-m MODULE`, a script, or a folder with a `__main__.py`.
        environment: the ranks'. A default for what is set there changes nothing.
    """

    def matters(found: EarlySetting) -> bool:
        known = found.is_default and found.name in environment
        return found.name is None or not (known or LATER.fullmatch(found.name))

    return next((found for found in _until_torch(_Program(program).events()) if matters(found)), None)


def _until_torch(events: Events) -> Iterator[EarlySetting]:
    yield from takewhile(lambda event: event is not None, events)  # type: ignore[arg-type]


class _Program:
    """The files that Python would run: the program's own, and those of its folder or on PYTHONPATH that it imports."""

    def __init__(self, program: tuple[str, ...]) -> None:
        self._name, self._is_module = program[-1], program[0] == "-m"
        script = Path(self._name)
        own = Path.cwd() if self._is_module else script if script.is_dir() else script.resolve().parent
        self._folders = [own, *map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
        self._installed = own, ""
        """For a module that lies elsewhere: the folder where it was found, and its package, which alone is followed
        there."""
        self._seen: set[Path] = set()

    def events(self) -> Events:
        if not self._is_module:
            path = Path(self._name)
            yield from self._of_file(path / "__main__.py" if path.is_dir() else path, is_main=True)
            return
        everywhere = [*self._folders, *map(Path, filter(None, sys.path))]
        folder, found = next(
            ((folder, found) for folder in everywhere if (found := _files(folder, self._name))), (Path(), [])
        )
        self._installed = folder, self._name.partition(".")[0]
        for path in found[:-1]:
            yield from self._of_file(path)
        for path in found[-1:]:
            is_package = path.name == "__init__.py"
            yield from self._of_file(path, is_main=not is_package)
            if is_package:
                yield from self._of_file(path.with_name("__main__.py"), is_main=True)

    def imported(self, name: str, beside: Path | None = None) -> Events:
        """The events of a module and of the packages around it. A relative import begins in the folder `beside`."""
        if beside is None and name.partition(".")[0] in TORCH:
            yield None
        own, top = self._installed
        folders = self._folders if beside is None else [beside]
        for folder in [*folders, *[own] * (top == name.partition(".")[0])]:
            if found := _files(folder, name):
                for path in found:
                    yield from self._of_file(path)
                return

    def _of_file(self, path: Path, is_main: bool = False) -> Events:
        if path in self._seen or len(self._seen) == _MOST_FILES:
            return
        self._seen.add(path)
        with suppress(OSError, SyntaxError, ValueError, RecursionError, IndexError):
            yield from _File(self, path, is_main).block(ast.parse(path.read_bytes()).body)


def _files(folder: Path, name: str) -> list[Path]:
    """What is run for `import name`, from the outermost package on, as far as `folder` has it."""
    found: list[Path] = []
    for part in name.split("."):
        folder = folder / part
        files = [one for one in (folder / "__init__.py", folder.with_name(f"{part}.py")) if one.is_file()]
        found += files[:1]
        if not files and not folder.is_dir():
            break
    return found


class _File:
    def __init__(self, program: _Program, path: Path, is_main: bool) -> None:
        self._program, self._path, self._is_main = program, path, is_main
        self._aliases: dict[str, str] = {}

    def block(self, statements: list[ast.stmt]) -> Events:
        for statement in statements:
            yield from self._statement(statement)

    def _statement(self, node: ast.stmt) -> Events:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield from self._program.imported(alias.name)
            case ast.ImportFrom():
                beside = self._path.parents[node.level - 1] if node.level else None
                for alias in node.names:
                    self._aliases[alias.asname or alias.name] = alias.name
                    yield from self._program.imported(".".join(filter(None, [node.module, alias.name])), beside)
            case ast.If():
                yield from self._settings(node.test)
                test = ast.unparse(node.test)
                if "__name__" in test:
                    yield from self.block(node.body if self._is_main else [])
                elif not test.endswith("TYPE_CHECKING"):
                    yield from _until_torch(self.block(node.body))
                yield from _until_torch(self.block(node.orelse))
            case ast.Try() | ast.With():
                yield from self._inside(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.For() | ast.While() | ast.Match():
                yield from _until_torch(self._inside(node))  # if it is run at all, and when
            case _:
                yield from self._settings(node)

    def _inside(self, node: ast.AST) -> Events:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from self._statement(child)
            elif isinstance(child, ast.match_case | ast.ExceptHandler):
                yield from _until_torch(self._inside(child))
            else:
                yield from self._settings(child)

    def _settings(self, node: ast.AST) -> Events:
        for one in ast.walk(node):
            here = partial(EarlySetting, file=self._path, line=getattr(one, "lineno", 0), is_default=False)
            match one:
                case ast.Subscript(ctx=ast.Store() | ast.Del()) if self._is_environ(one.value):
                    yield here(name=_constant(one.slice))
                case ast.Assign() if self._is_environ(one.value):
                    self._aliases |= {target.id: "environ" for target in one.targets if isinstance(target, ast.Name)}
                case ast.Assign() if any(map(self._is_environ, one.targets)):
                    yield here(name=None)
                case ast.AugAssign() if self._is_environ(one.target):
                    yield from (here(name=name) for name in _keys(one.value))
                case ast.Call(func=ast.Attribute(attr="update", value=owner)) if self._is_environ(owner):
                    yield from (here(name=keyword.arg) for keyword in one.keywords)
                    yield from (here(name=name) for given in one.args for name in _keys(given))
                case ast.Call(func=ast.Attribute(attr=attr, value=owner)) if attr in _CHANGES and self._is_environ(
                    owner
                ):
                    yield here(name=_constant(*one.args[:1]), is_default=attr == "setdefault")
                case ast.Call() if self._word(one.func) in _FUNCTIONS:
                    yield here(name=None if self._word(one.func) == "load_dotenv" else _constant(*one.args[:1]))

    def _word(self, node: ast.AST) -> str | None:
        """`environ` for `os.environ`, whatever os is called here, and for what was imported from it."""
        return node.attr if isinstance(node, ast.Attribute) else self._aliases.get(getattr(node, "id", ""))

    def _is_environ(self, node: ast.AST) -> bool:
        return self._word(node) in ("environ", "environb")


def _keys(node: ast.AST) -> list[str | None]:
    """The names in `{"A": …}` and `dict(A=…)`; None for each that cannot be told."""
    match node:
        case ast.Dict():
            return [_constant(key) for key in node.keys]
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return [keyword.arg for keyword in node.keywords]
    return [None]


def _constant(node: ast.AST | None = None) -> str | None:
    value = getattr(node, "value", None)
    return os.fsdecode(value) if isinstance(value, str | bytes) else None
