"""Data parallelism: DistributedDataParallel, with gradients added along one fixed tree (dist_train/parallel/tree.py).

A rank computes its share of a step's microbatches. All but the last run under no_sync, and their gradients are added
up inside the rank as a binary counter does. The last one's backward triggers DDP's buckets; a communication hook adds
the rank's other microbatches, then the ranks' nodes of the tree (dist_train/parallel/exchange.py). The exchange
overlaps the rest of the backward: on gloo in a thread with a process group of its own, on CUDA on a stream of its own.

What happens to the model's buffers is in dist_train/parallel/buffers.py.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from dist_train.config.shares import share
from dist_train.parallel.bucket import in_bucket
from dist_train.parallel.buffers import StepBuffers
from dist_train.parallel.exchange import Exchange
from dist_train.parallel.overlap import SideStream, SideThread
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.tree import BinaryCounter
from dist_train.parallel.unused import check_all_have_gradients, with_all
from dist_train.randomness import Generators, key
from dist_train.timing import NullTiming

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig


class Placed(Protocol):
    """What the sum has to know of a microbatch, which is its place: its optimizer step, and its number in that step."""

    @property
    def step(self) -> int: ...

    @property
    def number(self) -> int: ...


P = TypeVar("P", bound=Placed)


@dataclass(frozen=True, kw_only=True)
class ParallelOptions:
    """How gradients are added.

    Attributes:
        microbatches: V, the number of microbatches in a step, over all ranks.
        seed: with step and number, it decides what a microbatch draws.
        exact: gradients are added along the tree; if not, as DistributedDataParallel adds them.
        total: gradients become the sum over the microbatches, and not their mean; only with `exact`.
        bucket_mb: size of DistributedDataParallel's buckets; None for its own sizes.
        unused: parameters may take no part in a loss.
    """

    microbatches: int
    seed: int = 0
    exact: bool = True
    total: bool = False
    bucket_mb: float | None = None
    unused: bool = False

    @classmethod
    def of(cls, config: "RunConfig") -> "ParallelOptions":
        """The options of a config whose number of microbatches is settled."""
        return cls(
            microbatches=config.batch.settled,
            seed=config.seed,
            exact=config.exact,
            bucket_mb=config.distributed.bucket_mb,
            unused=config.distributed.unused_parameters == "allow",
        )


class Parallel:
    """A model on all ranks.

    Attributes:
        module: the model itself, for evaluation and checkpoints.
        parameters: those that are trained.
        timing: is told where forward, backward and the wait for the others end.
        loss_scale: what a microbatch's mean loss is multiplied by, so that the gradients become the mean over all
            microbatches: the tree divides by their number, and DDP's own sum by the number of ranks.

    Args:
        generators: what a microbatch may draw from; without it, the model's.
    """

    def __init__(
        self, module: nn.Module, group: ProcessGroup, options: ParallelOptions, generators: Generators | None = None
    ) -> None:
        self.module, self.timing = module, NullTiming()
        self._options = options
        ranks, microbatches = group.ranks, options.microbatches
        shares = [share(rank, ranks.world_size, microbatches) for rank in range(ranks.world_size)]
        own = shares[ranks.rank]
        self._ddp = DistributedDataParallel(
            module,
            device_ids=[group.device] if group.device.type == "cuda" else None,
            bucket_cap_mb=options.bucket_mb or _bucket_mb(module, group.device),
            gradient_as_bucket_view=True,
            **_no_forward_sync(),  # StepBuffers takes care of them
        )
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [parameter for _, parameter in self._named]
        self._group = group
        self.loss_scale = 1.0 if options.exact else ranks.world_size / microbatches
        self._generators = generators or Generators(module)
        self._is_last = False
        self._targets: int | Tensor = 0
        self._counting: tuple[Tensor, Any] | None = None
        self._sum: _ExactSum | None = None
        self._exchange = Exchange(group.for_reduction(), ranks.rank, shares, microbatches)
        self._buffers = StepBuffers(module, self._exchange, own, microbatches)
        if options.exact:
            self._sum = _ExactSum(self._exchange, own, options, self.parameters, group.device, self._take)
            self._ddp.register_comm_hook(None, self._sum.hook)
        elif self.parameters:  # DDP's own sum has no hook; the backward reaches the first parameter last, as a rule
            self.parameters[0].register_post_accumulate_grad_hook(lambda _: self.timing.lap("backward"))

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        return self._ddp(*inputs, **keywords)

    def each(self, microbatches: Sequence[P]) -> Iterator[P]:
        """Yields the rank's microbatches of one step. For each, the body does one forward, and one backward of the loss
        times `loss_scale`. After the last one, `.grad` of every parameter holds the mean of the V microbatches'
        gradients, or their sum: the same bits on every rank. The adding itself is done by `_ExactSum`.
        """
        self._buffers.begin_step()
        self._targets, self._counting = 0, None
        for microbatch in microbatches:
            self._is_last = last = microbatch is microbatches[-1]
            self._generators.seed(key(self._options.seed, "dropout", microbatch.step, microbatch.number))
            self._buffers.begin(microbatch.number)
            with nullcontext() if last else self._ddp.no_sync():
                yield microbatch
            self.timing.lap("exchange" if last else "backward")
            check_all_have_gradients(self._named)
            if not last:
                self._buffers.keep()
                if self._sum is not None:
                    self._sum.keep(microbatch.number)
        if self._sum is not None:
            mean = self._sum.mean_of_more
        elif nodes := self._buffers.take():
            self._exchange.mean_into(nodes[-1], nodes)
            mean = nodes[-1]
        else:
            mean = None
        self._buffers.finish_step(mean)
        self.timing.lap("exchange")

    def _take(self) -> list[Tensor]:
        """What is averaged besides the gradients: the buffers. The backward is over, except for the wait for the
        sums."""
        self.timing.lap("backward")
        return self._buffers.take()

    def complete(self, loss: Tensor) -> Tensor:
        """The loss to call backward on. Where the config allows that parameters take no part, every one takes part in
        this."""
        self.timing.lap("forward")
        return with_all(loss, self.parameters) if self._options.unused else loss

    def count(self, targets: int | Tensor) -> None:
        """Notes how many valid targets the microbatch has; to be called before its backward. With the last one, the
        ranks begin to add up their counts while the backward runs. (Not on a GPU, whose count would have to be waited
        for.)"""
        self._targets += targets
        if self._is_last and self._group.device.type == "cpu":
            self._counting = self._start_counting()

    def rescale(self, samples: int, targets_per_sample: int | None = None) -> None:
        """Turns gradients that were divided by the number of samples into ones divided by the number of valid targets.

        Args:
            samples: how many the global batch has.
            targets_per_sample: valid targets of each sample, where known; else the counted ones are used.
        """
        if targets_per_sample is None:
            total, work = self._counting or self._start_counting()
            work.wait()
            self.timing.lap("exchange")
        factor = samples / max(1, samples * targets_per_sample if targets_per_sample is not None else int(total))
        torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)

    def _start_counting(self) -> tuple[Tensor, Any]:
        total = torch.as_tensor(self._targets, dtype=torch.int64, device="cpu").clone()
        return total, self._group.start_all_reduce_(total)

    def restore_buffers(self) -> None:
        """Puts back the buffers as they were before the step that has just run."""
        self._buffers.restore()

    def check(self) -> None:
        """Raises UserError (exit 10) on every rank when a step since the last check was no function of its samples."""
        if self._options.exact:
            self._buffers.check()

    def close(self) -> None:
        """Ends the reduction thread."""
        if self._sum is not None:
            self._sum.close()


def _bucket_mb(module: nn.Module, device: torch.device) -> int | None:
    """The size of DDP's buckets; None for its own sizes, of which the first is small and leaves early.

    On a CPU the backward needs the cores that an exchange beside it would take. Small gradients leave all at once: 0.97
    of a step of a GPT of 3 MB; at 7 and 13 MB it makes no difference, and at 45 MB the exchange beside it is faster.
    """
    size = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    return _SMALL_MB if device.type == "cpu" and size <= _SMALL_MB << 20 else None


def _no_forward_sync() -> dict[str, Any]:
    """The argument has another name since torch 2.13."""
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


_SMALL_MB = 8
"""MiB of gradients that leave in one bucket on a CPU."""
_Gradients = list[list[Tensor]]
"""For each of several nodes of the tree, the gradients of a bucket's parameters."""


class _ExactSum:
    """Adds gradients along the tree: `keep` inside the rank, `hook` and `_reduce` over all ranks.

    Args:
        more: returns what is to be averaged besides the gradients, as Exchange.mean_into takes it; empty for nothing.
            It is called once a step, when the last gradient is there. Every forward is over by then, also one that
            activation checkpointing repeats.

    Attributes:
        mean_of_more: the mean of what `more` returned in the last step.
    """

    def __init__(
        self,
        exchange: Exchange,
        own: range,
        options: ParallelOptions,
        parameters: list[nn.Parameter],
        device: torch.device,
        more: Callable[[], list[Tensor]],
    ) -> None:
        self._exchange = exchange
        self._microbatches = options.microbatches
        self._divisor = 1 if options.total else options.microbatches
        self._last = own[-1]
        self._parameters = parameters
        self._place = {id(parameter): place for place, parameter in enumerate(parameters)}
        self._nodes: BinaryCounter[list[Tensor]] = BinaryCounter(self._microbatches, _add_lists)
        self._runner: SideThread | SideStream = SideStream(device) if device.type == "cuda" else SideThread()
        self._more = more
        self.mean_of_more: Tensor | None = None

    def keep(self, number: int) -> None:
        """Takes a microbatch's gradients away from the parameters, into the counter."""
        self._nodes.push(number, [cast(Tensor, parameter.grad) for parameter in self._parameters])
        for parameter in self._parameters:
            parameter.grad = None

    def hook(self, _: object, bucket: dist.GradBucket) -> Future[Tensor]:
        """DDP's communication hook: it gets each bucket in the backward of the rank's last microbatch."""
        flat, parameters = bucket.buffer(), bucket.parameters()
        places = [self._place[id(parameter)] for parameter in parameters]
        folded, beside = (
            [[self._nodes.nodes[node][place] for place in places] for node in nodes]
            for nodes in self._nodes.folding(self._last)
        )
        more: list[Tensor] = []
        if bucket.is_last():
            more, self.mean_of_more = self._more(), None
            self._nodes = BinaryCounter(self._microbatches, _add_lists)
        is_last = bucket.is_last()
        return self._runner.submit(lambda: self._reduce(flat, parameters, folded, beside, more), is_last=is_last)

    def _reduce(
        self, flat: Tensor, parameters: list[Tensor], folded: _Gradients, beside: _Gradients, more: list[Tensor]
    ) -> Tensor:
        """A bucket's gradients of all microbatches, added up and divided."""
        if flat.is_cuda:  # else memory that is given back now could be handed out while this stream still reads it
            for tensor in (*chain(*folded, *beside), *more):
                tensor.record_stream(torch.cuda.current_stream(flat.device))
        for gradients in folded:
            torch._foreach_add_(in_bucket(flat, parameters), gradients)
        values = []
        for gradients in beside:
            values.append(torch.empty_like(flat))
            torch._foreach_copy_(in_bucket(values[-1], parameters), gradients)
        values.append(flat)
        if more and more[0].dtype == flat.dtype and flat.numel() < _SMALL:
            joined = [torch.cat(pair) for pair in zip(values, more, strict=True)]
            self._exchange.mean_into(joined[-1], joined, self._divisor)
            mean, self.mean_of_more = joined[-1].split([flat.numel(), more[0].numel()])
            if self._divisor == 1:
                self.mean_of_more.div_(self._microbatches)
            return flat.copy_(mean)
        self._exchange.mean_into(flat, values, self._divisor)
        if more:
            self._exchange.mean_into(more[-1], more)
            self.mean_of_more = more[-1]
        return flat

    def close(self) -> None:
        self._runner.close()


_SMALL = 1 << 19
"""Numbers in a bucket below which the buffers travel with it: the copy costs less than an exchange of their own."""


def _add_lists(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
    return left
