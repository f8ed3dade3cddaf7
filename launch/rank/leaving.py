"""The end of a rank that was forked: fast, and with all of its own written.

Standard library only: the fork server loads this by its path.
"""

import atexit
import contextlib
import ctypes
import importlib.machinery
import sys
import types
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
    """Modules that a forked rank shares with its peers, and what becomes of them at its end.

    Attributes:
        names: of the modules; filled before the fork.
        spared: the interpreter leaves them as they are. Taking them apart would copy them: 80 MB, 0.08 s in each rank.
    """

    def __init__(self) -> None:
        self.names, self.spared = set[str](), False
        self._modules = dict[str, types.ModuleType]()
        atexit.register(self._prepare_the_end)  # first, and so called last

    def _prepare_the_end(self) -> None:
        shared = self.names & sys.modules.keys() - {"__main__", "builtins", "sys"}
        for name in [*(name for name in sys.modules if name not in shared and name != "__main__"), "__main__"]:
            # The collector does not look at what is shared (gc.freeze). Where that knows a class of a module's, and so
            # its globals, these live on, files among them, unless the module lives as long and is cleared in the end.
            # The last one is cleared first: what is left open may need the other modules to close itself.
            module = sys.modules[name] = sys.modules.pop(name)
            if isinstance(module, types.ModuleType):
                vars(module)["__itself__"] = module
        if self.spared:
            self._modules = {name: sys.modules.pop(name) for name in shared}
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._modules))  # they outlive the interpreter
            sys.meta_path.insert(0, self)  # should an object import something as it is deleted

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in self._modules else None  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self._modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        """It has been executed."""
