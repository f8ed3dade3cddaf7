"""The process group of a script with its own loop: opened by whatever needs it first, or by the script itself."""

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from dist_train.errors import UserError
from dist_train.heartbeat import mute
from dist_train.memory import keep_freed_memory
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.lease import Fence, Lease


@dataclass(kw_only=True)
class World:
    """What the parts of one script share.

    Attributes:
        models: every exact.DistributedDataParallel, in the order in which they were made, the same on all ranks.
        active: the one whose `each` is at work.
        at_end: what is to be called before the process group is closed.
        leases: of the folders that are saved into, each with its fence.
    """

    group: ProcessGroup
    models: list[Any] = field(default_factory=list)
    active: Any = None
    at_end: list[Callable[[], None]] = field(default_factory=list)
    leases: dict[str, tuple[Lease, Fence]] = field(default_factory=dict)


_world: World | None = None


def init(*, backend: str = "auto", threads: int = 1, timeout_s: float = 1800.0) -> None:
    """Opens the process group, or takes the one that the script has opened, and makes this process deterministic.

    Best called before the model is made. Whatever needs the group calls it by itself; to be called once, on all ranks.

    Args:
        backend: nccl, gloo, or auto: nccl with GPUs, gloo without.
        threads: of torch inside an operation, on a CPU. The result depends on it: sums have another order.
        timeout_s: time in seconds after which a collective fails that not all ranks have joined.

    Raises:
        UserError: when it is open already, or the ranks or the device are not there.
    """
    global _world
    if _world is not None:
        raise UserError("exact.init: the process group is open already; call it once, before anything else of exact")
    if backend not in ("auto", "nccl", "gloo") or threads < 1 or timeout_s <= 0:
        raise UserError(
            f"exact.init: backend={backend!r}, threads={threads}, timeout_s={timeout_s}: the backend is auto, nccl or "
            "gloo, and the others are above 0"
        )
    mute()
    torch.set_num_threads(threads)
    keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the CUDA context is made
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only for debugging
    torch.backends.cudnn.benchmark = False
    # As the config has them, without its libraries.
    options: Any = SimpleNamespace(backend=backend, timeout=SimpleNamespace(seconds=timeout_s))
    _world = World(group=ProcessGroup(Ranks.from_environment(), options).__enter__())
    atexit.register(_close_at_exit)


def world() -> World:
    """The one that is open; opens it where there is none."""
    if _world is None:
        init()
    assert _world is not None
    return _world


def close() -> None:
    """Closes the process group, unless the script has opened it. At the end of the interpreter it is called by itself;
    where nothing is open, it does nothing."""
    _close(None)


def _close_at_exit() -> None:
    _close(getattr(sys, "last_type", None))


def _close(failure: type[BaseException] | None) -> None:
    """After a failure the peers may be gone, and nothing waits for them."""
    global _world
    if _world is not None:
        closing, _world = _world, None
        atexit.unregister(_close_at_exit)
        for end in closing.at_end if failure is None else []:
            end()
        for lease, _ in closing.leases.values():
            lease.release()
        closing.group.__exit__(failure)


def rank() -> int:
    """This process's number, from 0."""
    return world().group.ranks.rank


def world_size() -> int:
    """The number of ranks."""
    return world().group.ranks.world_size


def is_first() -> bool:
    """Whether this is rank 0, which prints and writes."""
    return world().group.ranks.is_first


def device() -> torch.device:
    """Where this rank computes: a GPU of its own, or the CPU."""
    return world().group.device
