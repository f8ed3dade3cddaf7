"""All that we change in torch, at run time. Standard library only: a rank and the fork server load this by its path.

Each was last seen to be needed, and to work, in torch 2.11 to 2.15. Each is called in one kind of process alone, and
the test that fails without it is named.

In the agent (node/agent.py):
- start_ranks_by: torch's elastic agent has its ranks started by a function of ours (test_preload.py).
- end_ranks_by: when a rank of a program of others has failed, a function of ours ends the rest, not torch's agent
  (test_endings.py).

- look_after: torch's elastic agent looks at its ranks when there is news of them (test_run.py).

In a rank (`be_watched` in rank/main.py):
- wrap_collective: the calls of torch.distributed's functions are noted (test_collectives.py).
- keep_stacks: a loading process keeps faulthandler's signal handlers (tests/failures/).

In the fork server (node/fork_server.py), and so in all that it forks:
- keep_operators: the operators that torch has registered stay so at the end of a rank (test_endings.py).
- install_lazy_dynamo: torch._dynamo is imported when something is compiled (test_lazy_dynamo.py). The second half of
  this file, which nothing else needs.
"""

import faulthandler
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import signal
import sys
import threading
import time
import types
import weakref
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


def look_after(wait: Callable[[float], None]) -> None:
    """From now on, torch's agent in this process calls `wait` with the seconds that it would sleep between two looks at
    its ranks."""
    from torch.distributed.elastic.agent.server import api

    api.time = types.SimpleNamespace(**{**vars(time), "sleep": wait})  # type: ignore[assignment]


def keep_operators() -> None:
    """At the end of this process and of those that are forked from it, torch no longer unregisters one by one what its
    libraries have registered so far: 20 MB of memory that ranks share, and 0.02 s in each of them."""
    unregister = getattr(sys.modules.get("torch.library"), "_del_library", None)
    for one, told in [*getattr(weakref.finalize, "_registry", {}).items()]:
        if unregister is not None and told.func is unregister:
            one.atexit = False


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
# and while nothing has been compiled the answer to each is known. So `install_lazy_dynamo` puts modules in its place
# that give these answers:
#
#   torch._dynamo                a LazyDynamo: `graph_break` and `disable`
#   torch._dynamo.utils          a LazyPart: `get_optimize_ddp_mode`, and `is_compile_supported` for later
#   torch._dynamo.trace_rules    a LazyPart: `clear_lru_cache`
#   `import torch._dynamo.…`     asks the LazyFinder first, which stands in sys.meta_path
#
# Whatever else one of the first three is asked for (`__getattr__`), and any other import below them, calls `make_real`:
# it runs the real module's code in the LazyDynamo, which is the same object from then on and a plain module, takes the
# other three out, and is never called again. What is answered is what torch 2.11 to 2.15 ask. In another torch, a
# question that is not known makes the module real at once: slower, not wrong.


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
    sys.meta_path.insert(0, LazyFinder(module))  # type: ignore[arg-type]


class LazyDynamo(types.ModuleType):
    """torch._dynamo, as long as nothing is compiled. Its namespace is the one that the real module will run in."""

    def prepare(self) -> None:
        """Puts in what torch asks of a compiler that has compiled nothing, and what it is answered."""
        self._is_loading = False
        self._marked: list[Any] = []
        self.graph_break = self._graph_break
        self.disable = self._disable
        # The mode of DistributedDataParallel is the default of its config.
        self.utils = LazyPart(self, "utils", ["is_compile_supported"], get_optimize_ddp_mode=lambda: "ddp_optimizer")
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
            parts: list[LazyPart] = [vars(module).pop(n) for n in ("utils", "trace_rules") if n in vars(module)]
            for name in ("graph_break", "disable"):
                vars(module).pop(name, None)
            for part in parts:
                if sys.modules.get(part.__name__) is part:
                    del sys.modules[part.__name__]
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, LazyFinder)]
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
    """A module below torch._dynamo, that knows some answers. For any other it has the real one made, and asks that.

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


class LazyFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what is imported below torch._dynamo: a LazyPart, or else a module of the real one, which is made first. As
    a rule, the real one has imported the module by itself then, and that is found."""

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
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in sys.modules else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = spec.loader_state or sys.modules[spec.name]
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the one from above there
