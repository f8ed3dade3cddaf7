"""The process group: opened once and closed once. A single rank has one too, so that no caller has to ask.

Gradients travel on the device's group (nccl or gloo). Everything small, and every wait for work that only one rank
does, uses a gloo group on the host with a long time limit: a rank that waits there is not stuck.
"""

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from dist_train.parallel.exchange import Lanes, regular
from dist_train.parallel.ranks import Ranks

if TYPE_CHECKING:
    from dist_train.config.schema import DistributedConfig

T = TypeVar("T")
HOST_TIMEOUT = timedelta(days=30)
"""Of the group on the host: longer than any download or evaluation by one rank alone. A peer that dies is still noticed
at once, by its closed connection."""


class ProcessGroup:
    """All ranks of one generation. A context manager. One that the script has opened itself is used, and left open.

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
        self._lanes: Lanes | None = None

    def __enter__(self) -> "ProcessGroup":
        if self.ranks.nodes == 1:
            _stay_on_loopback()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        beat("connect")  # no work: the library looks around for the others as busily as it would compute
        if self._is_ours:
            alone: dict[str, Any] = (
                {"store": dist.HashStore(), "rank": 0, "world_size": 1} if "MASTER_ADDR" not in os.environ else {}
            )
            dist.init_process_group(self.backend, timeout=self._timeout, **alone)
        self._host = dist.new_group(None, HOST_TIMEOUT, "gloo")
        self._connect(dist.group.WORLD)
        beat("init")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After a failure the peers may be gone, and an orderly end would wait for them.
        if kind is None and self._is_ours and dist.is_initialized():
            dist.destroy_process_group()

    def for_reduction(self) -> Lanes:
        """Groups for the exact sum, whose thread must not share one with DDP; by node, where all nodes have the same
        number of ranks. The same ones each time: models that are trained in turn share them."""
        if self._lanes is not None:
            return self._lanes
        beat("connect")
        ranks, places = self.ranks, torch.zeros(self.ranks.world_size, 2, dtype=torch.int64)
        places[ranks.rank] = torch.tensor([ranks.local_rank, ranks.local_world_size])
        per_node = regular([(place, here) for place, here in self.all_reduce_host_(places).tolist()])
        inside = across = None
        if per_node is None:
            per_node, inside = ranks.world_size, self._new_group()
        else:
            node, place = divmod(ranks.rank, per_node)
            inside = self._new_group(range(node * per_node, (node + 1) * per_node))
            across = self._new_group(range(place, ranks.world_size, per_node))
        beat("init")
        self._lanes = Lanes(inside=inside, across=across, per_node=per_node)
        return self._lanes

    def _new_group(self, ranks: Sequence[int] | None = None) -> dist.ProcessGroup:
        """On the device. Of all ranks; or of `ranks`, while the others make theirs at the same time."""
        group = dist.new_group(ranks, self._timeout, self.backend, use_local_synchronization=ranks is not None)
        assert isinstance(group, dist.ProcessGroup)
        self._connect(group)
        return group

    def _connect(self, group: Any) -> None:
        """The first collective of a group makes its connections. NCCL may hang there, and nothing else watches it
        (pytorch/pytorch#88103), so it is called here, where the watchdog knows the phase."""
        dist.all_reduce(torch.zeros(1, device=self.device), group=group)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

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
        """Rank 0's CPU tensors, on every rank's CPU, so that a checkpoint is read once."""
        mine = dict(tensors or {})
        layout = self.broadcast_object([(name, t.shape, t.dtype) for name, t in mine.items()])
        everyone = {name: mine[name] if mine else torch.empty(shape, dtype=dtype) for name, shape, dtype in layout}
        for tensor in everyone.values():
            dist.broadcast(tensor.view(-1).view(torch.uint8) if tensor.dim() else tensor, src=0, group=self._host)
        return everyone

    def all_reduce_host_(self, tensor: Tensor) -> Tensor:
        """Adds a CPU tensor over all ranks, in place, without a time limit. Exact for integers, and for floats that at
        most one rank has."""
        dist.all_reduce(tensor, group=self._host)
        return tensor

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
        return dist.all_reduce(tensor, op=op, group=self._host, async_op=True)


def _backend_of_others(ranks: Ranks) -> str:
    """Of the group that a script has opened itself.

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
