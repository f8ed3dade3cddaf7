"""A config may name the user's own things, and nothing of Python's own library by any name."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import imports
from dist_train.config.schema import CustomModel
from dist_train.errors import UserError

STDLIB = [
    "os:system", "os:popen", "os.path:os.system", "posix:system", "subprocess:run", "subprocess:Popen",
    "builtins:eval", "builtins:exec", "builtins:__import__", "logging:os.system", "logging.handlers:os.system",
    "shutil:rmtree", "pty:spawn", "code:interact", "runpy:run_path", "importlib:import_module", "pickle:loads",
    "marshal:loads", "ctypes:CDLL", "multiprocessing:Process", "socket:socket", "webbrowser:open", "sys:exit",
    "threading:Thread", "asyncio:run", "antigravity:x", "this:s", "_io:open", "io:open", "pathlib:Path",
    "tempfile:mkdtemp", "functools:partial", "types:FunctionType", "__main__:x", "operator:attrgetter",
    "platform:popen", "timeit:timeit", "cProfile:run", "pdb:run", "bdb:Bdb", "zipimport:x",
]  # fmt: skip
ALIASED = [
    "attacks:os.system", "attacks:shell", "attacks:run", "attacks:evaluate", "attacks:opener", "attacks:prepared",
    "attacks:twice", "attacks:Holder.call", "attacks:Holder.nested.run", "attacks:table.get", "attacks:bound",
    "attacks:Base", "yaml:os.system", "yaml:sys.exit", "numpy:os.system", "pydantic:typing.cast", "attacks:instance",
    "attacks:function.__globals__.get", "attacks:Holder.__init__", "attacks:Holder.__class__",
    "attacks:__builtins__.get",
]  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with modules of the user's own, which Python finds as it does beside `python -m`."""
    folder = tmp_path
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    (folder / "attacks.py").write_text(
        "import builtins, functools, os, subprocess\n"
        "from os import system as shell\nfrom subprocess import run\nevaluate = eval\nopener = open\nBase = dict\n"
        "prepared = functools.partial(os.system, 'true')\ntwice = functools.partial(functools.partial(eval), '1')\n"
        "table = {}\nbound = os.environ.update\ninstance = {}\n"
        "class Holder:\n    call = os.system\n    nested = subprocess\n"
        "def function(): pass\n"
    )
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "nets.py").write_text(
        "import functools\n\nclass Config:\n    def __init__(self, size): self.size = size\n"
        "def showing_less(thing):\n    made = lambda **given: thing(**given)\n"
        "    made.__wrapped__ = lambda: None\n    return made\n"
        "Decorated = showing_less(Config)\ndef from_config(config, others=()): return config, others\n"
        "class Net:\n    size = 3\n    @classmethod\n    def small(cls): return cls()\n"
        "def build(): return Net()\nready = functools.partial(Net)\n"
    )
    (folder / "mine" / "needs.py").write_text("import nets\nimport not_installed_anywhere\n")
    (folder / "mine" / "broken.py").write_text("x = 1\ndef f(:\n")
    (folder / "mine" / "raises.py").write_text("def go():\n    raise KeyError('k')\n\ngo()\n")
    (folder / "mine" / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] in ("mine", "attacks")]:
        del sys.modules[name]


@pytest.mark.parametrize("path", STDLIB + ALIASED)
def test_nothing_of_pythons_own_is_resolved_by_any_name(path: str, own: Path) -> None:
    before = list(sys.path)
    with pytest.raises(UserError) as caught:
        imports.resolve_import(path, "model")
    assert caught.value.code == 2 and "\n" not in str(caught.value) and str(caught.value).startswith(f"model {path}: ")
    assert sys.path == before
    assert not {"antigravity", "this"} & set(sys.modules), "not even imported"


def test_the_users_own_things_are_resolved(own: Path) -> None:
    net = imports.resolve_import("mine.nets:Net", "model")
    assert net.__qualname__ == "Net" and imports.resolve_import("mine.nets:build", "model")().size == 3
    assert imports.resolve_import("mine.nets:Net.small", "model")().size == 3
    assert imports.resolve_import("mine.nets:ready", "model")().size == 3


@pytest.mark.parametrize(
    ("path", "fragments"),
    [
        ("nowhere.nets:Net", ["no module nowhere, which nowhere.nets needs, in ", "installed packages"]),
        ("mine.net:Net", ["no module mine.net in ", "/mine or among", "Did you mean nets?"]),
        ("mien.nets:Net", ["Did you mean mine?"]),
        ("mine.nets:Nett", ["mine.nets has no Nett; it has Net"]),
        ("mine.nets:Net.smal", ["Net has no smal; it has small"]),
        ("mine.nets:Net.size", ["a int, not a class or function"]),
        ("mine:nets", ["that is a module; name the class or function in it"]),
        ("mine.broken:f", ["importing it fails at ", "mine/broken.py:2: SyntaxError"]),
        ("mine.raises:go", ["importing it fails at ", "mine/raises.py:2: KeyError: 'k'"]),
        ("mine.leaves:x", ["mine/leaves.py:2: SystemExit: 3"]),
        ("mine.needs:x", ["mine/needs.py:1: ModuleNotFoundError: No module named 'nets'"]),
        ("Net", ["it is written package.module:Thing"]),
        ("code:Net", ["code is part of Python itself", "rename your module"]),
    ],
)
def test_what_cannot_be_imported_is_told_in_one_line(path: str, fragments: list[str], own: Path) -> None:
    if path == "mine:nets":
        imports.resolve_import("mine.nets:Net", "model")  # so that the package has it
    with pytest.raises(UserError) as caught:
        imports.resolve_import(path, "model")
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_argument_that_is_a_name_with_args_is_built(own: Path) -> None:
    three = {"name": "mine.nets:Config", "args": {"size": 3}}
    config, others = _built(config=three, others=[{"deep": {"name": "mine.nets:build"}}])
    assert type(config).__name__ == "Config" and config.size == 3 and others[0]["deep"].size == 3
    plain = {"name": "mine", "args": {}}, {"name": "mine.nets:Config", "size": 3}
    assert _built(config=plain[0], others=[plain[1]]) == (plain[0], [plain[1]])
    with pytest.raises(UserError, match="^model.args.config mine.nets:Config\\(size\\) cannot be called so: "):
        _built(config={"name": "mine.nets:Config", "args": {"sise": 3}})
    with pytest.raises(UserError, match="^model.args.others os:system: os is part of Python itself"):
        _built(config=three, others=[{"name": "os:system", "args": {"command": "true"}}])


def test_what_takes_more_than_its_signature_shows_is_called(own: Path) -> None:
    config, _ = _built(config={"name": "mine.nets:Decorated", "args": {"size": 4}})
    assert config.size == 4
    with pytest.raises(UserError, match="Decorated\\(\\) cannot be called so"):
        _built(config={"name": "mine.nets:Decorated", "args": {"sise": 4}})


def _built(**args: object) -> tuple[Any, Any]:
    custom = CustomModel.model_validate({"name": "mine.nets:from_config", "args": args})
    return imports.construct(custom, "model", offered={})
