"""All that we change in torch, at run time. Standard library only: a rank and the fork server load this by its path.

Each was last seen to be needed, and to work, in torch 2.11 to 2.15; the test that fails without it is named.

- install_lazy_dynamo: torch._dynamo is imported when something is compiled (test_lazy_dynamo.py).
- start_ranks_by: the elastic agent has its ranks started by a function of ours (test_preload.py).
- end_ranks_by: when a rank of a program of others has failed, a function of ours ends the rest, not torch's agent
  (test_endings.py).
- wrap_collective: the calls of torch.distributed's functions are noted (test_collectives.py).
- keep_stacks: a loading process keeps faulthandler's signal handlers (tests/failures/).
"""

import faulthandler
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import signal
import sys
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, TextIO

NAME = "torch._dynamo"
_LOADING = threading.RLock()


def start_ranks_by(start: Callable[[dict[str, str], tuple[str, ...]], Any]) -> None:
    """From now on, torch's agent in this process asks `start` for a rank, with its environment and its words, and
    starts the rank itself where that returns None.

    The agent has one function that starts processes, and no other place to put another in.
    """
    from torch.distributed.elastic.multiprocessing import api

    execute = api.get_subprocess_handler

    def handler(entrypoint: str, args: tuple[str, ...], env: dict[str, str], *more: Any, **options: Any) -> Any:
        rank = start(env, args) if options.get("numa_options") is None else None
        return execute(entrypoint, args, env, *more, **options) if rank is None else rank

    api.get_subprocess_handler = handler


def end_ranks_by(told: Callable[[], None], patience: float) -> None:
    """From now on, torch's agent in this process sends nothing to the ranks that are left when one has failed: it calls
    `told`, and waits for them, `patience` seconds at most."""
    from torch.distributed.elastic.multiprocessing import api

    close = api.PContext.close

    def ours(context: Any, death_sig: signal.Signals | None = None, timeout: float = patience) -> None:
        if getattr(context, "_failures", None):
            told()
            death_sig = signal.SIGURG  # nothing reacts to this one
        close(context, death_sig, timeout)  # type: ignore[arg-type]

    api.PContext.close = ours  # type: ignore[assignment, method-assign]


def wrap_collective(function: Any, wrapper: Callable[[Callable], Callable]) -> None:
    """Wraps what the function itself wraps. So references to the function stay valid, and the compiler still knows it:
    it knows collectives by their identity."""
    wrapped = getattr(function, "__wrapped__", None)
    for cell in getattr(function, "__closure__", None) or ():
        if cell.cell_contents is wrapped is not None:
            cell.cell_contents = wrapper(wrapped)


def keep_stacks(log: TextIO) -> None:
    """Called in each child. If it loads data for torch, torch's signal handlers no longer replace faulthandler's
    there."""
    handling = sys.modules.get("torch.utils.data._utils.signal_handling")
    theirs = getattr(handling, "_set_worker_signal_handlers", None)
    if theirs is None:
        return

    def ours(*arguments: Any) -> None:
        theirs(*arguments)
        faulthandler.disable()
        faulthandler.enable(file=log)

    handling._set_worker_signal_handlers = ours  # type: ignore[union-attr]


# ---------------------------------------------------------------- torch._dynamo
#
# Importing it takes as long as importing torch itself. Every program pays that, one that compiles nothing too:
# optimizers and DistributedDataParallel import it to ask it for four things, torchvision to have a function for later,
# and while nothing has been compiled the answer to each is known. `install_lazy_dynamo` puts a module in its place that
# gives these answers. Whatever else it is asked for, or when another module below it is imported, it becomes the real
# one, the same object, and stays out of the way for good. What it answers is what torch 2.11 to 2.15 ask. In another
# torch, a question it does not know makes it the real module at once: slower, not wrong.


def install_lazy_dynamo() -> None:
    """Does nothing where torch._dynamo is imported already, or is not to be found."""
    if NAME in sys.modules or "torch" not in sys.modules:
        return
    spec = importlib.util.find_spec(NAME)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = LazyDynamo
    module.prepare()  # type: ignore[attr-defined]
    sys.modules[NAME] = sys.modules["torch"]._dynamo = module  # type: ignore[attr-defined]
    sys.meta_path.insert(0, BelowDynamo(module))  # type: ignore[arg-type]


class LazyDynamo(types.ModuleType):
    """The module, as long as nothing is compiled. Its namespace is the one that the real module will run in."""

    def prepare(self) -> None:
        """Puts in what torch asks of a compiler that has compiled nothing, and what it is answered."""
        self._is_loading = False
        self._marked: list[Any] = []
        self.graph_break = self._graph_break
        self.disable = self._disable
        answers = {"get_optimize_ddp_mode": lambda: "ddp_optimizer"}  # the default of its config
        self.utils = LazyPart(self, "utils", for_later=["is_compile_supported"], **answers)
        self.trace_rules = LazyPart(self, "trace_rules", clear_lru_cache=lambda: None)

    def __getattr__(self, name: str) -> Any:
        make_real(self)
        return types.ModuleType.__getattribute__(self, name)

    # Whoever has kept one of these two for longer gets the real one's answer.

    def _graph_break(self, *arguments: Any, **named: Any) -> None:
        """Nothing is being traced."""
        if type(self) is not LazyDynamo:
            self.graph_break(*arguments, **named)

    def _disable(self, fn: Callable | None = None, *arguments: Any, wrapping: bool = True, **named: Any) -> Any:
        """`fn` itself for torch's own decorator, which keeps the answer on it; a user's own is meant for later."""
        if wrapping or fn is None or type(self) is not LazyDynamo or self._is_loading:
            make_real(self)
            return self.disable(fn, *arguments, wrapping=wrapping, **named)
        self._marked.append(fn)
        return fn


def make_real(module: Any) -> Any:
    """Runs the real module's code in this one, and returns it. Other threads wait for it, as they do for any import.

    Raises:
        ImportError: what it raises.
    """
    with _LOADING:
        if type(module) is not LazyDynamo or module._is_loading:
            return module
        module._is_loading = True
        try:
            for function in module._marked:  # else the real one would never hear of them
                vars(function).pop("__dynamo_disable", None)
            parts: list[LazyPart] = [
                vars(module).pop(name) for name in ("utils", "trace_rules") if name in vars(module)
            ]
            for name in ("graph_break", "disable"):
                vars(module).pop(name, None)
            for part in parts:
                if sys.modules.get(part.__name__) is part:
                    del sys.modules[part.__name__]
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, BelowDynamo)]
            module.__spec__.loader.exec_module(module)  # type: ignore[union-attr]
        finally:
            module._is_loading = False
        module.__class__ = types.ModuleType  # type: ignore[assignment]
        for name in ("_is_loading", "_marked"):
            delattr(module, name)
        for part in parts:
            part.hand_over()
        return module


class LazyPart(types.ModuleType):
    """A module below, that knows some answers.

    Args:
        for_later: functions that a module imports and calls once something is compiled.
        known: what it answers.
    """

    def __init__(self, module: LazyDynamo, name: str, for_later: Sequence[str] = (), **known: Any) -> None:
        super().__init__(f"{NAME}.{name}")
        self._real = lambda: getattr(make_real(module), name)
        self._for_later = {one: self._later(one) for one in for_later}
        self._known = {**known, **self._for_later}
        vars(self).update(self._known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what is asked of any module
            raise AttributeError(name)
        return getattr(self._real(), name)

    def _later(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **named: getattr(self._real(), name)(*arguments, **named)

    def hand_over(self) -> None:
        """Gives the real functions to the modules that have imported those for later: a compiler would trace these."""
        for name, function in self._for_later.items():
            for module in list(sys.modules.values()):
                if isinstance(module, types.ModuleType) and vars(module).get(name) is function:
                    setattr(module, name, getattr(self._real(), name))
        for name in self._known:
            delattr(self, name)


class BelowDynamo(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes torch._dynamo real before a module below it is imported, which it then is already, as a rule."""

    def __init__(self, module: LazyDynamo) -> None:
        self._module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{NAME}."):
            return None
        part = vars(self._module).get(fullname.removeprefix(f"{NAME}."))
        if isinstance(part, LazyPart):
            return importlib.machinery.ModuleSpec(fullname, self, loader_state=part)
        make_real(self._module)
        if fullname not in sys.modules:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = spec.loader_state or sys.modules[spec.name]
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the one from above there
