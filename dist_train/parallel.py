"""Data parallelism: DistributedDataParallel, with gradients added along one fixed tree (dist_train/tree.py).

A rank works off its share of a step's microbatches. All but the last run under no_sync, and their gradients are added
up inside the rank as a binary counter does. The last one's backward triggers DDP's buckets; a communication hook folds
the rank's other microbatches in, then adds the ranks' nodes: each rank receives one chunk of everybody's (all-to-all),
adds it along the tree, and hands the sum to all (all-gather). That moves as many bytes as a ring all-reduce, and
overlaps the rest of the backward: on gloo in a thread with a process group of its own, on CUDA on a stream of its own.

Floating-point buffers (BatchNorm's statistics) start every microbatch of a step from the same values and become the
mean over all microbatches, along the same tree; integer buffers advance once a step.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from dist_train.config.errors import ExitCode, UserError
from dist_train.config.schema import RunConfig
from dist_train.config.shares import share
from dist_train.control.heartbeat import work
from dist_train.data.batch import Microbatch
from dist_train.exchange import Exchange
from dist_train.process_group import ProcessGroup
from dist_train.randomness import key, seed_torch
from dist_train.side_work import SideStream, SideThread
from dist_train.tree import BinaryCounter, LastLeaf


class Parallel:
    """A model on all ranks.

    Attributes:
        module: the model itself, for evaluation and checkpoints.
        parameters: those that are trained.

    Args:
        keep_buffers: whether put_back_buffers may be asked for.
    """

    def __init__(
        self, module: nn.Module, group: ProcessGroup, config: RunConfig, microbatches: int, keep_buffers: bool = False
    ) -> None:
        self.module = module
        self._config = config
        ranks = group.ranks
        self._shares = [share(rank, ranks.world_size, microbatches) for rank in range(ranks.world_size)]
        self._ddp = DistributedDataParallel(
            module,
            device_ids=[group.device] if group.device.type == "cuda" else None,
            bucket_cap_mb=config.distributed.bucket_mb,
            gradient_as_bucket_view=True,
            **_no_forward_sync(),  # _Buffers takes care of them
        )
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [parameter for _, parameter in self._named]
        self._group = group
        self._loss_scale = ranks.world_size / microbatches
        self._buffers = _Buffers(module, keep_buffers)
        self._sum: _ExactSum | None = None
        exchange = Exchange(group.for_reduction(), ranks.rank, self._shares, microbatches)
        if config.exact:
            self._sum = _ExactSum(exchange, self._shares[ranks.rank], microbatches, self.parameters, group.device)
            self._sum.more = self._buffers.take
            self._loss_scale = 1.0
            self._ddp.register_comm_hook(None, self._sum.hook)
        self._buffers.bind(self._sum, exchange, self._shares[ranks.rank], microbatches)

    def __call__(self, inputs: Tensor) -> Any:
        begun = time.perf_counter()
        output = self._ddp(inputs)
        work(time.perf_counter() - begun)
        return output

    def each(self, microbatches: Sequence[Microbatch]) -> Iterator[tuple[Microbatch, float]]:
        """Yields the rank's microbatches of one step, and the factor for the loss, with everything set for one forward
        and one backward in the body. After the last one, `.grad` of every parameter holds the mean over the V
        microbatches' gradients, the same bits on every rank.
        """
        self._buffers.begin_step()
        for microbatch in microbatches:
            last = microbatch is microbatches[-1]
            seed_torch(key(self._config.seed, "dropout", microbatch.step, microbatch.number))
            self._buffers.begin(microbatch.number)
            with nullcontext() if last else self._ddp.no_sync():
                yield microbatch, self._loss_scale
            self._check_all_have_gradients()
            if not last:
                self._buffers.keep()
                if self._sum is not None:
                    self._sum.keep(microbatch.number)
        self._buffers.finish_step()

    def _check_all_have_gradients(self) -> None:
        """DDP reports a parameter that is not used one step later, and names nothing (pytorch/pytorch#43259)."""
        unused = [name for name, parameter in self._named if parameter.grad is None]
        if unused:
            raise UserError(
                f"the loss does not depend on {len(unused)} parameters: {', '.join(unused[:5])}"
                f"{', …' if len(unused) > 5 else ''}; use them, or freeze them with requires_grad_(False)",
                ExitCode.USER_CODE,
            )

    def rescale(self, counts: Mapping[int, int | Tensor], global_batch: int) -> None:
        """Turns gradients that were divided by the number of samples into ones divided by the number of valid targets.

        Args:
            counts: by number of this rank's microbatches, how many valid targets they have.
        """
        total = torch.as_tensor(sum(counts.values()), dtype=torch.int64).cpu()
        factor = global_batch / max(1, int(self._group.sum_(total)))
        torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)

    def put_back_buffers(self) -> None:
        """The buffers as they were before the step that has just run; needs `keep_buffers`."""
        self._buffers.put_back()

    def close(self) -> None:
        """Ends the reduction thread."""
        if self._sum is not None:
            self._sum.close()


def _no_forward_sync() -> dict[str, Any]:
    """The argument has another name since torch 2.13."""
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


class _ExactSum:
    """DDP's communication hook."""

    def __init__(
        self,
        exchange: Exchange,
        own: range,
        microbatches: int,
        parameters: list[nn.Parameter],
        device: torch.device,
    ) -> None:
        self._exchange = exchange
        self._microbatches = microbatches
        self._last = LastLeaf.of(own, microbatches)
        self._parameters = parameters
        self._place = {id(parameter): i for i, parameter in enumerate(self._parameters)}
        self._nodes: BinaryCounter[list[Tensor]] = BinaryCounter(microbatches, _add_lists)
        self._runner: SideThread | SideStream = SideStream(device) if device.type == "cuda" else SideThread()
        self.more: Callable[[], list[Tensor]] = list
        """Gives what is to be averaged beside the gradients, as Exchange.mean_into takes it, or nothing."""
        self.mean_of_more: Tensor | None = None

    def keep(self, number: int) -> None:
        """Takes a microbatch's gradients away from the parameters, into the counter."""
        self._nodes.push(number, [cast(Tensor, parameter.grad) for parameter in self._parameters])
        for parameter in self._parameters:
            parameter.grad = None

    def hook(self, _: object, bucket: dist.GradBucket) -> Future[Tensor]:
        # The last forward is over when the first bucket arrives, so what it leaves behind is final.
        more = self.more() if bucket.index() == 0 else []
        partial = dict(self._nodes.nodes)
        if bucket.is_last():
            self._in_use = self._nodes  # for a step: memory given back now could be handed out while a stream reads it
            self._nodes = BinaryCounter(self._microbatches, _add_lists)
        flat, places = bucket.buffer(), [self._place[id(p)] for p in bucket.parameters()]
        gradients = bucket.gradients()
        return self._runner.submit(lambda: self._reduce(flat, gradients, places, partial, more))

    def _reduce(
        self, flat: Tensor, gradients: list[Tensor], places: list[int], partial: dict[Any, Any], more: list[Tensor]
    ) -> Tensor:
        for node in self._last.folded:
            torch._foreach_add_(gradients, [partial[node][place] for place in places])
        values = [torch.cat([partial[node][i].reshape(-1) for i in places]) for node in self._last.beside] + [flat]
        if more and more[0].dtype == flat.dtype and flat.numel() < _SMALL:
            joined = [torch.cat(pair) for pair in zip(values, more, strict=True)]
            self._exchange.mean_into(joined[-1], joined)
            mean, self.mean_of_more = joined[-1].split([flat.numel(), more[0].numel()])
            return flat.copy_(mean)
        self._exchange.mean_into(flat, values)
        if more:
            self._exchange.mean_into(more[-1], more)
            self.mean_of_more = more[-1]
        return flat

    def close(self) -> None:
        self._runner.close()


_SMALL = 1 << 19
"""Numbers in a bucket up to which a copy costs less than a way of their own for the buffers."""


def _add_lists(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
    return left


class _Buffers:
    """The model's buffers over a step of several microbatches."""

    def __init__(self, module: nn.Module, keep: bool) -> None:
        buffers = list(module.buffers())
        self._keep = keep
        self._floats = [b for b in buffers if b.is_floating_point()]
        self._integers = [b for b in buffers if not b.is_floating_point()]

    def bind(self, exact: _ExactSum | None, exchange: Exchange, own: range, microbatches: int) -> None:
        self._exact, self._exchange, self._own, self._microbatches = exact, exchange, own, microbatches

    @torch.no_grad()
    def begin_step(self) -> None:
        if len(self._own) > 1 or self._keep:
            self._before = [[b.clone() for b in group] for group in (self._floats, self._integers)]
        self._nodes: BinaryCounter[Tensor] = BinaryCounter(self._microbatches, torch.Tensor.add_)

    @torch.no_grad()
    def begin(self, number: int) -> None:
        self._number = number
        if number != self._own.start:
            self.put_back()

    @torch.no_grad()
    def put_back(self) -> None:
        for now, before in zip((self._floats, self._integers), self._before, strict=True):
            if now:
                torch._foreach_copy_(now, before)

    def keep(self) -> None:
        """Takes the statistics of the microbatch that has just run."""
        if self._floats:
            self._nodes.push(self._number, torch.cat([b.reshape(-1) for b in self._floats]))

    def take(self) -> list[Tensor]:
        """The statistics of this rank's nodes, from left to right; called once the last forward is over."""
        if not self._floats:
            return []
        self.keep()
        return [self._nodes.nodes[node] for node in sorted(self._nodes.nodes)]

    @torch.no_grad()
    def finish_step(self) -> None:
        if not self._floats:
            return
        if self._exact is not None:
            flat = self._exact.mean_of_more
            assert flat is not None, "no gradient bucket arrived"
        else:
            values = self.take()
            flat = values[-1]
            self._exchange.mean_into(flat, values)
        parts = flat.split([b.numel() for b in self._floats])
        torch._foreach_copy_(self._floats, [part.view_as(b) for part, b in zip(parts, self._floats, strict=True)])
