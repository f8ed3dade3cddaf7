"""The process group: opened once and closed once. A single rank has one too, so that no caller has to ask.

Gradients travel on the device's group (nccl or gloo). Everything small, and every wait for work that only one rank
does, uses a gloo group on the host with a long time limit: a rank that waits there is not stuck.
"""

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.config.problems import ConfigError
from dist_train.errors import UserError
from dist_train.heartbeat import beat
from dist_train.parallel.exchange import Lanes, level_sizes
from dist_train.parallel.overlap import SideThread
from dist_train.parallel.ranks import Ranks

if TYPE_CHECKING:
    from dist_train.config.schema import DistributedConfig

T = TypeVar("T")
MANY = 64
"""Ranks above which gloo connects only those that talk to each other, since all to all are W² look-ups in one store;
and above which the host's sums go in levels, since a ring takes 2(W - 1) messages, one after another: docs/scale.md."""
HOST_TIMEOUT = timedelta(days=30)
"""Time limit of the group on the host: longer than any download or evaluation by one rank alone. A peer that dies is
still noticed at once, by its closed connection."""


class ProcessGroup:
    """All ranks of one generation. A context manager. A group that the script has opened itself is used, and left open.

    Attributes:
        ranks: this process's place.
        backend: nccl or gloo.
        device: where this rank computes.
    """

    def __init__(self, ranks: Ranks, config: "DistributedConfig") -> None:
        self.ranks = ranks
        self._is_ours = not dist.is_initialized()
        self.backend = _choose_backend(config.backend) if self._is_ours else _backend_of_others(ranks)
        self.device = _choose_device(self.backend, ranks)
        self._timeout = timedelta(seconds=config.timeout.seconds)
        self._host: Any = None
        self._lanes: dict[str, Lanes] = {}
        self._behind: SideThread | None = None
        """Runs sums in levels; None where there are not so many ranks."""

    def __enter__(self) -> "ProcessGroup":
        if self.ranks.nodes == 1:
            _stay_on_loopback()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.ranks.world_size > MANY:
            os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
        beat("connect")  # a phase of its own: the library looks for the others as busily as if it computed
        if self._is_ours:
            alone: dict[str, Any] = (
                {"store": dist.HashStore(), "rank": 0, "world_size": 1} if "MASTER_ADDR" not in os.environ else {}
            )
            dist.init_process_group(self.backend, timeout=self._timeout, **alone)
        self._host = dist.new_group(None, HOST_TIMEOUT, "gloo")
        self._connect(dist.group.WORLD, self.device)
        beat("init")
        if self.ranks.world_size > MANY:
            self._lanes_on_host()
            self._lanes_on_host("behind")
            self._behind = SideThread()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After a failure the peers may be gone, and an orderly end would wait for them.
        if kind is None and self._behind is not None:
            self._behind.close()
        if kind is None and self._is_ours and dist.is_initialized():
            dist.destroy_process_group()

    def for_reduction(self) -> Lanes:
        """Groups for the exact sum, whose thread must not share one with DDP. The same ones each time: models that are
        trained in turn share them."""
        return self._lanes_for("sums", self.backend, self._timeout)

    def _lanes_for(self, use: str, backend: str, timeout: timedelta) -> Lanes:
        """Groups of their own for each use; all ranks ask for them in the same order."""
        if use not in self._lanes:
            beat("connect")
            ranks, places = self.ranks, torch.zeros(self.ranks.world_size, 2, dtype=torch.int64)
            places[ranks.rank] = torch.tensor([ranks.local_rank, ranks.local_world_size])
            dist.all_reduce(places, group=self._host)
            sizes, groups, block = level_sizes([(place, here) for place, here in places.tolist()]), [], 1
            for size in sizes:
                first = ranks.rank - ranks.rank // block % size * block
                members = range(first, first + block * size, block)
                groups.append(self._new_group(members if size < ranks.world_size else None, backend, timeout))
                block *= size
            beat("init")
            self._lanes[use] = Lanes(groups=tuple(groups), sizes=sizes)
        return self._lanes[use]

    def _new_group(self, ranks: Sequence[int] | None, backend: str, timeout: timedelta) -> dist.ProcessGroup:
        """A group of all ranks; or of `ranks`, while the other ranks make their own at the same time."""
        group = dist.new_group(ranks, timeout, backend, use_local_synchronization=ranks is not None)
        assert isinstance(group, dist.ProcessGroup)
        self._connect(group, self.device if backend == self.backend else torch.device("cpu"))
        return group

    def _connect(self, group: Any, device: torch.device) -> None:
        """The first collective of a group makes its connections. NCCL may hang there, and nothing else watches it
        (pytorch/pytorch#88103), so it is called here, where the watchdog knows the phase."""
        dist.all_reduce(torch.zeros(1, device=device), group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def barrier(self) -> None:
        """Returns when every rank has called it, however long one of them takes."""
        dist.barrier(group=self._host)

    @contextmanager
    def local_rank0_first(self) -> Iterator[None]:
        """One rank of each node runs the block first, the others when it is done; for downloads."""
        if not self.ranks.is_first_on_node:
            self.barrier()
        yield
        if self.ranks.is_first_on_node:
            self.barrier()

    def run_on_rank0(self, function: Callable[[], T]) -> T:
        """Calls `function` on rank 0 and returns its result on every rank; where it fails, every rank raises its error.

        Raises:
            UserError: rank 0's, on all ranks, so that none is left waiting.
        """
        result: Any = None
        if self.ranks.is_first:
            try:
                result = function()
            except (UserError, ConfigError) as error:
                self.broadcast_object((None, error))
                raise
        value, failure = self.broadcast_object((result, None))
        if failure is not None:
            raise failure
        return value

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank. For small things."""
        holder = [value if self.ranks.is_first else None]
        dist.broadcast_object_list(holder, src=0, group=self._host, device=torch.device("cpu"))
        return holder[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks, on every rank. For small things."""
        gathered = [None] * self.ranks.world_size
        dist.all_gather_object(gathered, value, group=self._host)
        return gathered

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Rank 0's CPU tensors, on every rank's CPU, so that a checkpoint is read once. A node receives them once and
        hands them on; several tensors are on their way at the same time."""
        mine = dict(tensors or {})
        layout = self.broadcast_object([(name, t.shape, t.dtype) for name, t in mine.items()])
        everyone = {name: mine[name] if mine else torch.empty(shape, dtype=dtype) for name, shape, dtype in layout}
        several = self.ranks.nodes > 1
        lanes = self._lanes_on_host() if several else Lanes(groups=(self._host,), sizes=(self.ranks.world_size,))
        for tensor in everyone.values():
            flat, block = tensor.view(-1).view(torch.uint8), self.ranks.world_size
            for group, size in zip(lanes.groups[::-1], lanes.sizes[::-1], strict=True):
                block //= size
                # The others' turn has not come. They call as often: so the watchdog sees who is behind.
                part = flat if self.ranks.rank % block == 0 else flat[:0]
                dist.broadcast(part, dist.get_global_rank(group, 0), group)
        return everyone

    def _lanes_on_host(self, use: str = "host") -> Lanes:
        return self._lanes_for(use, "gloo", HOST_TIMEOUT)

    def all_reduce_host_(self, tensor: Tensor) -> Tensor:
        """Adds a CPU tensor over all ranks, in place, without a time limit. Exact for integers, and for floats that at
        most one rank has."""
        groups = [self._host] if self._behind is None else self._lanes_on_host().groups
        return _all_reduce(tensor, groups, dist.ReduceOp.SUM)

    def all_reduce_device_(self, tensor: Tensor) -> Tensor:
        """Adds a tensor on the device over all ranks, in place, the way gradients travel, within their time limit."""
        dist.all_reduce(tensor)
        return tensor

    def exchange(self, sent: Tensor, received: Tensor, peer: int) -> None:
        """Sends a tensor to one other rank while receiving one from it; both on the device."""
        both = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
        for work in dist.batch_isend_irecv(both):
            work.wait()

    def start_all_reduce_(self, tensor: Tensor, *, maximum: bool = False) -> Any:
        """Begins the sum of a CPU tensor over all ranks, or the maximum, in place, without a time limit; wait() on what
        is returned before reading it."""
        op = dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM
        if self._behind is None:
            return dist.all_reduce(tensor, op=op, group=self._host, async_op=True)
        groups = self._lanes_on_host("behind").groups  # the thread alone uses them, so in one order on all ranks
        return self._behind.submit(lambda: _all_reduce(tensor, groups, op))


def _all_reduce(tensor: Tensor, groups: Iterable[Any], op: Any) -> Tensor:
    """Adds a tensor over each group in turn, in place."""
    for group in groups:
        dist.all_reduce(tensor, op=op, group=group)
    return tensor


def _backend_of_others(ranks: Ranks) -> str:
    """The backend of the group that a script has opened itself.

    Raises:
        UserError: when its ranks are not torchrun's.
    """
    found, said = (dist.get_rank(), dist.get_world_size()), (ranks.rank, ranks.world_size)
    if found != said:
        raise UserError(
            f"the process group that is open has rank {found[0]} of {found[1]} here, and torchrun's variables say "
            f"{said[0]} of {said[1]}: start the ranks with dist-train run or torchrun"
        )
    return "nccl" if "nccl" in str(dist.get_backend_config()) and torch.cuda.is_available() else "gloo"


def _choose_backend(wanted: str) -> str:
    if wanted == "gloo" or torch.cuda.is_available():
        return "nccl" if wanted == "auto" else wanted
    if wanted == "nccl":
        raise UserError("distributed.backend is nccl, and torch sees no GPU here: use gloo or auto, or see nvidia-smi")
    if gpus := _gpus_here():
        raise UserError(
            f"this machine has {gpus} GPU{'s' * (gpus > 1)}, and torch sees none ({_why_none()}): `dist-train doctor` "
            "looks into it; distributed.backend=gloo trains on the CPU"
        )
    return "gloo"


def _gpus_here() -> int:
    """How many GPUs the launcher counted for its plan; without a launcher, how many devices are not hidden."""
    if (counted := os.environ.get("DIST_TRAIN_GPUS")) is not None:
        return int(counted)
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return 0
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in Path("/dev").glob("nvidia*"))


def _why_none() -> str:
    """The first sentence of torch's own message."""
    if not torch.backends.cuda.is_built():
        return "it is a build without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).partition(". ")[0].strip()
    return "it does not say why"


def _choose_device(backend: str, ranks: Ranks) -> torch.device:
    if backend != "nccl":
        return torch.device("cpu")
    if ranks.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {ranks.local_rank} has no GPU: torch sees {torch.cuda.device_count()} here; "
            f"start as many ranks as GPUs with --nproc-per-node {torch.cuda.device_count()}"
        )
    return torch.device("cuda", ranks.local_rank)


def _stay_on_loopback() -> None:
    """On one node gloo needs no other interface, and a host name that does not resolve does no harm."""
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
