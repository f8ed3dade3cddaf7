"""A model's buffers over a step of several microbatches.

Every microbatch of a step starts from the same values. Afterwards a floating-point or complex buffer holds the mean of
the microbatches' values, along the tree of the gradients; a number that none of them has changed keeps its bits. An
integer buffer of one number is a counter: it advances once a step, as BatchNorm's does, and must do so alike in every
microbatch. An integer buffer of several numbers is a histogram: the changes of all microbatches are added up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dist_train.errors import UserCodeError, UserError
from dist_train.parallel.exchange import Exchange
from dist_train.parallel.tree import BinaryCounter


class Values(NamedTuple):
    """The numbers of all buffers, flat: those of floating-point and complex ones in the widest dtype that one of them
    has, those of integers and flags as int64."""

    floats: Tensor
    integers: Tensor


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """One buffer. `forward` may put another tensor in its place; `tensor` is the one that optimizer, average and
    checkpoints know, and it is restored after every microbatch.

    Attributes:
        name: its name in the model; of several, the first.
        places: the modules that hold it, and under which name.
    """

    name: str
    tensor: Tensor
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def is_saved(self) -> bool:
        """Whether it is part of the state_dict."""
        return any(name not in module._non_persistent_buffers_set for module, name in self.places)

    def current(self) -> Tensor:
        """What `forward` has left."""
        there = [module._buffers.get(name) for module, name in self.places]
        return next((t for t in there if t is not None and t is not self.tensor), self.tensor)

    def after_forward(self) -> Tensor:
        """A value of the same kind: what `forward` has left, or the old value of a buffer outside of checkpoints, such
        as a cache that has grown.

        Raises:
            UserError: (exit 10) when a buffer that checkpoints hold has another shape, dtype or device now.
        """
        found, known = self.current().resolve_conj(), self.tensor
        if (found.shape, found.dtype, found.device) == (known.shape, known.dtype, known.device):
            return found
        if not self.is_saved:
            return known
        raise UserCodeError(
            f"forward changes the buffer {self.name} from {known.dtype} {list(known.shape)} on {known.device} to "
            f"{found.dtype} {list(found.shape)} on {found.device}: a buffer keeps its shape, dtype and device, or is "
            "registered with persistent=False"
        )

    @property
    def is_float(self) -> bool:
        return self.tensor.is_floating_point() or self.tensor.is_complex()

    @property
    def is_counter(self) -> bool:
        """Whether it counts steps: an integer of one number, or flags."""
        return not self.is_float and (self.tensor.numel() == 1 or self.tensor.dtype == torch.bool)

    def unlike(self) -> UserError:
        """The error for a counter that does not advance alike in all microbatches."""
        return UserCodeError(
            f"the integer buffer {self.name} depends on the microbatch, so what it is after a step is not known: make "
            "it a vector of counts, which are added up, or a floating-point buffer"
        )


def buffers_of(model: nn.Module) -> list[Buffer]:
    """Every buffer once, in the order of `named_buffers`."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in module._buffers.items():
            places.setdefault(id(tensor), []).append((module, name))
    return [
        Buffer(name=name, tensor=tensor, places=tuple(places[id(tensor)])) for name, tensor in model.named_buffers()
    ]


def settle_buffers(model: nn.Module) -> None:
    """Gives each buffer memory of its own where several of its numbers share one, as `expand` makes them.

    Raises:
        UserError: (exit 10) when one is sparse or quantized.
    """
    for buffer in buffers_of(model):
        if buffer.tensor.layout != torch.strided or buffer.tensor.is_quantized:
            raise UserCodeError(
                f"the buffer {buffer.name} is sparse or quantized, which no checkpoint can hold: keep a plain tensor"
            )
        sizes = zip(buffer.tensor.shape, buffer.tensor.stride(), strict=True)
        if any(size > 1 and stride == 0 for size, stride in sizes) or buffer.tensor.requires_grad:
            alone = buffer.tensor.detach().clone(memory_format=torch.contiguous_format)
            for module, name in buffer.places:
                module._buffers[name] = alone


class BufferSet:
    """All buffers of a model, to be copied and restored together."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers = buffers_of(model)
        self.floats = [buffer for buffer in self.buffers if buffer.is_float]
        self.integers = [buffer for buffer in self.buffers if not buffer.is_float]
        real = [dtype.to_real() for dtype in dict.fromkeys(buffer.tensor.dtype for buffer in self.floats)]
        self._widest = real[0] if len(real) == 1 else reduce(torch.promote_types, real, torch.bfloat16)
        self._all = [(module, dict(module._buffers)) for module in model.modules()]
        self._some = [(module, held) for module, held in self._all if held]
        self._others = [module._buffers for module, held in self._all if not held]

    def _held(self) -> list[tuple[nn.Module, dict[str, Tensor | None]]]:
        """The modules that have buffers, and what they had at first. Most have none, and this is asked in each step."""
        return self._all if any(self._others) else self._some

    @torch.no_grad()
    def values(self) -> Values:
        """A copy of the values."""
        return self._flat(lambda buffer: buffer.tensor)

    @torch.no_grad()
    def forward_values(self) -> Values:
        """A copy of what `forward` has left.

        Raises:
            UserError: (exit 10) when a buffer that checkpoints hold is new, or has another shape or dtype now.
        """
        new = [
            name
            for module, held in self._held()
            for name, tensor in module._buffers.items()
            if tensor is not None and held.get(name) is None and name not in module._non_persistent_buffers_set
        ]
        if new:
            raise UserCodeError(
                f"forward makes the buffer {', '.join(sorted(new))}, which a new model would not have to load a "
                "checkpoint into: register it in the constructor, in its final shape, or with persistent=False"
            )
        return self._flat(Buffer.after_forward)

    @torch.no_grad()
    def restore(self, values: Values) -> None:
        """Makes the buffers what they were when `values` were copied."""
        for module, held in self._held():
            for name in module._buffers.keys() - held.keys():  # caches, which are made again
                del module._buffers[name]
            module._buffers.update(held)
        for buffers, flat in (self.floats, values.floats), (self.integers, values.integers):
            if buffers:
                targets = [_real(buffer.tensor) for buffer in buffers]
                parts = flat.split([target.numel() for target in targets])
                torch._foreach_copy_(targets, [part.view(t.shape) for part, t in zip(parts, targets, strict=True)])

    def _flat(self, value: Callable[[Buffer], Tensor]) -> Values:
        floats = [_real(value(buffer)).reshape(-1).to(self._widest) for buffer in self.floats]
        integers = [value(buffer).reshape(-1).to(torch.int64) for buffer in self.integers]
        nothing = torch.empty(0)
        return Values(torch.cat(floats) if floats else nothing, torch.cat(integers) if integers else nothing)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class StepBuffers:
    """A model's buffers over a step.

    Args:
        own: the numbers of this rank's microbatches.
        microbatches: V, those of all ranks.
    """

    def __init__(self, model: nn.Module, exchange: Exchange, own: range, microbatches: int) -> None:
        self._set = BufferSet(model)
        self._exchange, self._own, self._microbatches = exchange, own, microbatches
        self._integers = _Integers(self._set.integers, microbatches)
        self._before = self._set.values()
        self._nodes: BinaryCounter[Tensor] = BinaryCounter(microbatches, torch.Tensor.add_)
        self._number = own.start
        self._versions: list[tuple[int, int]] = []

    def begin_step(self) -> None:
        self._before = self._set.values()
        self._nodes = BinaryCounter(self._microbatches, torch.Tensor.add_)
        self._integers.begin_step()

    def begin(self, number: int) -> None:
        """To be called before each microbatch: all of them start from the same values."""
        self._number = number
        if number != self._own.start:
            self.restore()

    def restore(self) -> None:
        """Puts back the values from before the step."""
        self._set.restore(self._before)

    @torch.no_grad()
    def keep(self) -> None:
        """Takes the values that the last microbatch has left."""
        found = self._set.forward_values()
        self._integers.keep(found.integers, self._before.integers)
        if self._set.floats:
            after = found.floats
            # Beside each number, in how many microbatches it was changed.
            self._nodes.push(self._number, torch.cat([after, (after != self._before.floats).to(after.dtype)]))

    def take(self) -> list[Tensor]:
        """The values of this rank's nodes, from left to right, as Exchange.mean_into takes them; to be called when the
        last forward is over."""
        self._versions = self._seen()
        self.keep()
        return [self._nodes.nodes[node] for node in sorted(self._nodes.nodes)]

    @torch.no_grad()
    def finish_step(self, mean: Tensor | None) -> None:
        """Sets all buffers to their values after the step.

        Args:
            mean: what the exchange has made of `take`; None where there was nothing to exchange.
        """
        if self._versions != self._seen():
            raise UserCodeError("a buffer changes in the backward after the last gradient is there")
        floats, integers = self._before.floats, self._integers.after(self._before.integers, self._exchange)
        if mean is not None:
            new, changed = mean.chunk(2) if mean.numel() else (mean, mean)
            floats = torch.where(changed > 0, new, floats)
        self._set.restore(Values(floats, integers))

    def check(self) -> None:
        """Raises UserError (exit 10) when a counter has not advanced alike in all microbatches since the last check."""
        self._integers.check()

    def _seen(self) -> list[tuple[int, int]]:
        return [(id(tensor), tensor._version) for tensor in (buffer.current() for buffer in self._set.buffers)]


class _Integers:
    """The integer buffers over a step. A counter has changed by the same d in all V microbatches exactly when
    V · Σd² = (Σd)², the case of equality in the Cauchy-Schwarz inequality: two sums decide it on all ranks."""

    def __init__(self, buffers: Sequence[Buffer], microbatches: int) -> None:
        self._buffers, self._microbatches = buffers, microbatches
        self._sizes = torch.tensor([buffer.tensor.numel() for buffer in buffers], dtype=torch.int64)
        several = torch.tensor([not buffer.is_counter for buffer in buffers], dtype=torch.bool)
        device = buffers[0].tensor.device if buffers else None
        self._is_histogram = several.repeat_interleave(self._sizes).to(device)
        self._unlike = torch.zeros_like(self._is_histogram)
        # BatchNorm's are known to count steps, and most models have no others: nothing has to be exchanged for them.
        self._are_known = all(
            isinstance(module, nn.modules.batchnorm._NormBase) and name == "num_batches_tracked"
            for buffer in buffers
            for module, name in buffer.places
        )
        self._last = torch.empty(0)
        self._sums: Tensor | None = None

    def begin_step(self) -> None:
        self._sums = None

    def keep(self, found: Tensor, before: Tensor) -> None:
        self._last = found
        if not self._are_known:
            change = found - before
            both = torch.cat([change, change * change])
            self._sums = both if self._sums is None else self._sums.add_(both)

    def after(self, before: Tensor, exchange: Exchange) -> Tensor:
        """What the buffers hold after the step."""
        if self._sums is None:
            return self._last
        changes, squares = exchange.all_reduce_(self._sums).chunk(2)
        self._unlike |= ~self._is_histogram & (self._microbatches * squares != changes * changes)
        return torch.where(self._is_histogram, before + changes, self._last)

    def check(self) -> None:
        if not self._are_known and bool(self._unlike.any()):
            first = int(self._unlike.nonzero()[0])
            raise self._buffers[int((self._sizes.cumsum(0) <= first).sum())].unlike()
