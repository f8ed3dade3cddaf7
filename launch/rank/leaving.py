"""The end of a rank that was forked: fast, and with all of its own written.

Standard library only: the fork server loads this by its path.
"""

import atexit
import contextlib
import ctypes
import importlib.machinery
import sys
import types
import weakref
from typing import Any


def leave_fast() -> None:
    """From now on, the process ends as soon as the interpreter has ended, and what is loaded after this call. What
    torch's libraries do at the end takes longer, for nothing. For a forked rank, which has them loaded before."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # a libc that is not glibc
        # At the end these run in reverse order: C code prints what it still has, then the process ends.
        libc.on_exit(libc._exit, None)
        libc.__cxa_atexit(libc.fflush, None, None)


class SharedModules:
    """Modules that a forked rank shares with its peers, and what becomes of its own at its end.

    Python's collector does not look at what is shared (gc.freeze). Where that knows a class of a rank's own module, and
    so the module's globals, these would live on, and files among them lose what is not yet written. So an own module
    lives as long as its globals do, and the interpreter clears it in the end: after the collector, the newest first.

    Attributes:
        names: of the modules; filled before the fork.
        spared: the interpreter leaves them as they are. Taking them apart would copy them: 80 MB, 0.08 s in each rank.
    """

    def __init__(self) -> None:
        self.names, self.spared = set[str](), False
        self._modules = dict[str, types.ModuleType]()
        atexit.register(self._prepare_the_end)  # first, and so called last

    def _prepare_the_end(self) -> None:
        shared = self.names & {*sys.modules} - {"__main__", "builtins", "sys"}
        own = [module for name in [*sys.modules] if name not in shared and (module := _module(name)) is not None]
        for module in own:
            _globals(module)["__itself__"] = module
        for name in [name for name in [*sys.modules] if name not in shared]:
            sys.modules[name] = sys.modules.pop(name)  # behind the shared ones, and so cleared before these
        beginning = types.ModuleType("beginning_of_the_end")  # the newest one
        sys.modules[beginning.__name__] = beginning
        beginning.own = _CodeLast(own)  # type: ignore[attr-defined]
        _keep_for_ever(beginning)
        if self.spared:
            self._modules = {name: sys.modules.pop(name) for name in shared}
            _keep_for_ever(self._modules)
            sys.meta_path.insert(0, self)  # should an object import something as it is deleted

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in self._modules else None  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self._modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        """It has been executed."""


class _CodeLast:
    """Is deleted when the interpreter begins to clear modules. In those that there are still, which are cleared name by
    name, it puts modules, classes and functions last: what is left open may need them to close itself."""

    def __init__(self, modules: list[types.ModuleType]) -> None:
        self._modules = [weakref.ref(module) for module in modules]

    def __del__(self, code: tuple[type, ...] = (types.ModuleType, type, types.FunctionType)) -> None:
        for known in self._modules:
            if (module := known()) is not None:
                names = object.__getattribute__(module, "__dict__")
                for name in [name for name, value in names.items() if issubclass(type(value), code)]:
                    names[name] = names.pop(name)


def _module(name: str) -> types.ModuleType | None:
    """What is imported under a name, if it is a module and not just something that looks like one."""
    module = sys.modules.get(name)
    return module if issubclass(type(module), types.ModuleType) else None


def _globals(module: types.ModuleType) -> dict[str, Any]:
    """A lazy module imports itself when it is asked by other means."""
    found: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return found


def _keep_for_ever(thing: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
