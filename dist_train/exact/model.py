"""A model on all ranks, where torch's DistributedDataParallel stood."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn

from dist_train.config.shares import check_even, share
from dist_train.errors import UserCodeError, UserError
from dist_train.exact.world import world
from dist_train.parallel.bucket import realigned
from dist_train.parallel.buffers import BufferSet, settle_buffers
from dist_train.parallel.data_parallel import Parallel, ParallelOptions, Placed
from dist_train.randomness import Generators, key

P = TypeVar("P", bound=Placed)


class _Number(NamedTuple):
    step: int
    number: int


class DistributedDataParallel(nn.Module):
    """A model whose gradients are added over all microbatches of a step, along one tree: the same bits on every rank,
    and for any number of ranks.

    It is called as the model is. In the block of its own `each` the gradients of what it gives are added up; in the
    block of another model's `each`, and without gradients, it is the plain model.

    Attributes:
        module: the model itself.
        microbatches: V, how many a step is cut into, on all ranks together.

    Args:
        module: on exact.device(), with the same weights on all ranks; those of rank 0 count.
        seed: what the model and the script draw in a microbatch is keyed by (seed, step, number).
        unused_parameters: "allow" lets parameters take no part in a microbatch's loss; go backward from
            `parallel.complete(loss)` then.
        bucket_mb: gradients that are sent together, in MiB; None for DistributedDataParallel's own sizes.

    Raises:
        UserError: when there are more ranks than microbatches, the model has nothing to train, or is elsewhere.
    """

    def __init__(
        self,
        module: nn.Module,
        microbatches: int = 8,
        seed: int = 0,
        *,
        unused_parameters: Literal["refuse", "allow"] = "refuse",
        bucket_mb: float | None = None,
    ) -> None:
        super().__init__()
        self._world = world()
        group, place = self._world.group, len(self._world.models)
        self._own = own_share(microbatches)
        if unused_parameters not in ("refuse", "allow"):
            raise UserError(f"unused_parameters={unused_parameters!r}: it is 'refuse' or 'allow'")
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not trained:
            raise UserError(f"{type(module).__name__} has no parameter that requires a gradient: use it as it is")
        if away := [f"{name} on {p.device}" for name, p in trained if p.device != group.device]:
            raise UserError(f"this rank computes on {group.device}, and has {away[0]}: call model.to(exact.device())")
        if hasattr(module, "_orig_mod") or any(part._compiled_call_impl is not None for part in module.modules()):
            torch.use_deterministic_algorithms(True)  # covers the compiler's kernels, which takes a second to import
        if any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
            check_even(group.ranks.world_size, microbatches)
        settle_buffers(module)
        self.module, self.microbatches = module, microbatches
        self._seed = key(seed, "model", place) if place else seed
        options = ParallelOptions(
            microbatches=microbatches,
            seed=self._seed,
            total=True,
            bucket_mb=bucket_mb,
            unused=unused_parameters == "allow",
        )
        self._generators = Generators(module)
        self._sum = Parallel(module, group, options, self._generators)
        self._backwards: dict[int, int] = {}
        for number, (_, parameter) in enumerate(trained):
            parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._count(number))  # type: ignore[misc]
        self._world.models.append(self)
        self._world.at_end.append(self._sum.close)

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """What the model gives.

        Raises:
            UserError: (exit 10) outside of every `each` while gradients are recorded: nobody would add them up.
        """
        if self._world.active is self and torch.is_grad_enabled():
            return self._sum(*inputs, **keywords)
        if self._world.active is None and torch.is_grad_enabled():
            raise UserCodeError(
                f"{type(self.module).__name__} is called outside of `for … in parallel.each(step)`, where nobody adds "
                "up its gradients: call it in that block, under torch.no_grad(), or call parallel.module"
            )
        return self.module(*inputs, **keywords)

    @overload
    def each(self, step: int) -> Iterator[int]: ...

    @overload
    def each(self, step: Sequence[P]) -> Iterator[P]: ...

    def each(self, step: Any) -> Iterator[Any]:
        """Yields this rank's microbatches of one step; the block has one backward for each. Before each, the generators
        of Python, NumPy and torch are seeded by (seed, step, number), and buffers are those from before the step.

        After the last one `.grad` holds the sum of the gradients over all microbatches of all ranks, and the generators
        are the same on all ranks. A block that is left by `break` leaves no gradients. Buffers and gradients of other
        models are what they were.

        Args:
            step: what exact.loader gives for a step; or the step's number, from 0, for a script that draws its samples
                by itself. Then the numbers of the microbatches are given, from 0 to V - 1 over all ranks.

        Raises:
            UserError: (exit 10) when these are not this rank's microbatches, a parameter has no gradient, or a
                microbatch has several backwards.
        """
        mine = self._checked([_Number(step, number) for number in self._own] if isinstance(step, int) else step)
        others, own = [other for other in self._world.models if other is not self], set(map(id, self._sum.parameters))
        buffer_sets = [buffers for buffers in (BufferSet(other.module) for other in others) if buffers.buffers]
        kept = [(buffers, buffers.values()) for buffers in buffer_sets]
        aside = [(p, p.grad) for other in others for p in other._sum.parameters if id(p) not in own]
        done = False
        self._world.active = self
        for parameter in (*self._sum.parameters, *(parameter for parameter, _ in aside)):
            parameter.grad = None
        try:
            for microbatch in self._sum.each(mine):
                for buffers, values in kept:
                    buffers.restore(values)
                self._backwards.clear()
                yield microbatch.number if isinstance(step, int) else microbatch
                self._check_backwards()
            done = True
        finally:
            self._world.active = None
            for parameter, gradient in aside:  # what went through them belongs to nobody
                parameter.grad = gradient
            for buffers, values in kept:
                buffers.restore(values)
            for parameter in self._sum.parameters if not done else []:
                parameter.grad = None
        self._sum.check()
        for parameter in self._sum.parameters:
            parameter.grad = None if parameter.grad is None else realigned(parameter.grad)
        seed_after(mine[0].step)

    def complete(self, loss: Tensor) -> Tensor:
        """The loss to go backward from with unused_parameters="allow": what takes no part has a gradient of zeros."""
        return self._sum.complete(loss)

    def state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """The model's own, without a prefix."""
        return self.module.state_dict(*arguments, **keywords)

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """The model's own."""
        return self.module.load_state_dict(*arguments, **keywords)

    def _checked(self, step: Sequence[Any]) -> list[Any]:
        """This rank's microbatches of a step. Raises UserError as `each` does."""
        if self._world.active is not None:
            raise UserCodeError(
                "parallel.each inside of another one's block: train one model after the other, or put those that share "
                "a loss into one nn.ModuleDict"
            )
        found = [microbatch.number for microbatch in step]
        if found != list(self._own) or len({microbatch.step for microbatch in step}) != 1:
            raise UserCodeError(
                f"parallel.each has the microbatches {found}, and this rank's are {list(self._own)} of one step: give "
                f"it a step of exact.loader(…, microbatches={self.microbatches}), or the step's number"
            )
        return list(step)

    def _count(self, number: int) -> None:
        self._backwards[number] = self._backwards.get(number, 0) + 1

    def _check_backwards(self) -> None:
        if max(self._backwards.values(), default=1) > 1:
            raise UserCodeError(  # later ones would add to what has been sent
                "a microbatch has several backwards, and the sum over the ranks begins with the first: add the losses "
                "up, and call backward once"
            )


def seed_after(step: int) -> None:
    """Seeds the generators as they are after that step, alike on all ranks, for what the script draws between steps."""
    for model in world().models[:1]:
        model._generators.seed(key(model._seed, "after the step", step))


def own_share(microbatches: int) -> range:
    """The numbers of this rank's microbatches.

    Raises:
        UserError: when it would have none.
    """
    ranks = world().group.ranks
    if not isinstance(microbatches, int) or microbatches < ranks.world_size:
        raise UserError(
            f"microbatches={microbatches!r} with {ranks.world_size} ranks: it is a number, at least that of the ranks"
        )
    return share(ranks.rank, ranks.world_size, microbatches)
