"""The last collectives that each rank has called, with what and from where: which rank's does not fit the others'?

A rank that receives more than it expects is aborted by native code, in a moment, and it need not be the one that sent
too much; so each call is noted before it is made, in the page that is shared with the watchdog (heartbeat.py). It costs
a few microseconds a call. DistributedDataParallel's own collectives are made by native code, which checks their shapes
at the start.

It is loaded in a rank by its path, and imports the standard library alone.
"""

import inspect
import itertools
import mmap
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

AT, SLOT, KEPT = 2048, 256, 8
"""Where in the page the newest calls are, bytes of one, and how many are kept: the others may be a few ahead. A call is
five lines: its number from 1, what it was, the function, line and file that it came from."""
MOST_TEXTS = 1000
_OF_SHAPE = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "all_gather_single"),
    *("reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single"),
)
"""Every rank gives tensors of one shape."""
_OF_ANY_SHAPE = ("barrier", "gather", "scatter", "all_to_all", "all_to_all_single", "monitored_barrier")


class CollectiveLog:
    """Notes each call in the rank's page.

    Args:
        wrap: `wrap_collective` of torch_patches.py.
    """

    def __init__(self, page: mmap.mmap, wrap: Callable[[Any, Callable], None]) -> None:
        self._page, self._wrap = page, wrap
        self._numbers = itertools.count(1)
        self._foreign: tuple[str, ...] = (__file__,)
        self._members: Any = None
        self._texts: dict[tuple, bytes] = {}

    def begin(self) -> bool:
        """Notes the calls of torch.distributed's functions from now on. False: it is not imported yet."""
        module: Any = sys.modules.get("torch.distributed.distributed_c10d")
        if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
            return False
        self._foreign = (__file__, str(Path(str(sys.modules["torch"].__file__)).parent))
        self._members = getattr(module, "GroupMember", None)
        for name in (*_OF_SHAPE, *_OF_ANY_SHAPE):
            self._wrap(getattr(module, name, None), partial(self._noting, name=name))
        return True

    def _noting(self, function: Callable, name: str) -> Callable:
        parameters = list(inspect.signature(function).parameters)
        at = parameters.index("group") if "group" in parameters else len(parameters)

        def noting(*arguments: Any, **named: Any) -> Any:
            group = named.get("group", arguments[at] if len(arguments) > at else None)
            if group is None or group is getattr(self._members, "WORLD", None):
                self._note(name, arguments[0] if arguments else next(iter(named.values()), None))
            return function(*arguments, **named)

        return noting

    def _note(self, name: str, given: Any) -> None:
        number = next(self._numbers)
        frame: Any = sys._getframe(2)
        while frame.f_code.co_filename.startswith(self._foreign) and frame.f_back is not None:
            frame = frame.f_back
        shape = getattr(given, "shape", None)
        key = (name, shape, shape is not None and given.dtype, frame.f_code, frame.f_lineno)
        text = self._texts.get(key) if shape is not None else None
        if text is None:
            if len(self._texts) > MOST_TEXTS:
                self._texts.clear()
            what = f"{name} of {described(given)}" if name in _OF_SHAPE else name
            text = f"{what}\n{frame.f_code.co_name}\n{frame.f_lineno}\n{frame.f_code.co_filename}".encode()
            self._texts[key] = text
        place = AT + SLOT * (number % KEPT)
        self._page[place : place + SLOT] = (b"%d\n%b" % (number, text))[:SLOT].ljust(SLOT, b"\0")


def described(given: Any) -> str:
    """`float32 [4]`, `3 × float32 [4]`."""
    if isinstance(given, list | tuple):
        return f"{len(given)} × {described(given[0])}" if given else "nothing"
    return f"{str(getattr(given, 'dtype', '?')).removeprefix('torch.')} {list(getattr(given, 'shape', ()))}"
