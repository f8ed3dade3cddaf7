"""A model's buffers, and what becomes of them in a step of several microbatches.

Every microbatch of a step starts from the same values. Afterwards a floating-point or complex buffer holds the mean of
what the microbatches have left in it, along the tree of the gradients; where none of them has changed a number, it
stays to the bit. An integer buffer of one number is a counter: it advances once a step, as BatchNorm's does, and must
do so alike in every microbatch. One of several numbers is a histogram: all microbatches' changes are added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from dist_train.errors import ExitCode, UserError
from dist_train.parallel.exchange import Exchange
from dist_train.parallel.tree import BinaryCounter

Values = dict[torch.dtype, Tensor]
"""The numbers of all buffers of each dtype, flat."""


@dataclass(frozen=True)
class Buffer:
    """One buffer. `forward` may put another tensor in its place; `tensor` is the one that optimizer, average and
    checkpoints know, and it is put back after every microbatch.

    Attributes:
        name: of its first place.
        places: the modules that hold it, and under which name.
        is_saved: whether it is part of the state_dict.
    """

    name: str
    tensor: Tensor
    places: tuple[tuple[nn.Module, str], ...]
    is_saved: bool

    def current(self) -> Tensor:
        """What `forward` has left."""
        there = [module._buffers[name] for module, name in self.places]
        return next((t for t in there if t is not None and t is not self.tensor), self.tensor)

    @property
    def is_counter(self) -> bool:
        """Whether it counts steps: an integer of one number, or flags."""
        dtype = self.tensor.dtype
        is_integer = not (dtype.is_floating_point or dtype.is_complex)
        return is_integer and (self.tensor.numel() == 1 or dtype == torch.bool)

    def unlike(self) -> UserError:
        """What to say of a counter that does not advance alike in all microbatches."""
        return UserError(
            f"the integer buffer {self.name} depends on the microbatch, so what it is after a step is not known: make "
            "it a vector of counts, which are added up, or a floating-point buffer",
            ExitCode.USER_CODE,
        )

    def restore(self) -> None:
        for module, name in self.places:
            if module._buffers[name] is not self.tensor:
                module._buffers[name] = self.tensor


def buffers_of(model: nn.Module) -> list[Buffer]:
    """Every buffer once, in the order of `named_buffers`."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in module._buffers.items():
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, name))
    return [
        Buffer(name, tensor, tuple(places[id(tensor)]), any(n not in m._non_persistent_buffers_set for m, n in held))
        for name, tensor in model.named_buffers()
        for held in [places[id(tensor)]]
    ]


def settle_buffers(model: nn.Module) -> None:
    """Gives each buffer memory of its own where several of its numbers share one, as `expand` makes them.

    Raises:
        UserError: (exit 10) when one is sparse or quantized.
    """
    for buffer in buffers_of(model):
        if buffer.tensor.layout != torch.strided or buffer.tensor.is_quantized:
            raise UserError(
                f"the buffer {buffer.name} is sparse or quantized, which no checkpoint can hold: keep a plain tensor",
                ExitCode.USER_CODE,
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
        self._groups: dict[torch.dtype, list[Buffer]] = {}
        for buffer in self.buffers:
            self._groups.setdefault(buffer.tensor.dtype, []).append(buffer)
        self.numbers = {dtype: [_real(b.tensor).numel() for b in group] for dtype, group in self._groups.items()}
        self._modules = list(model.modules())
        self._empty = [(m, name) for m in self._modules for name, tensor in m._buffers.items() if tensor is None]
        self._names = [(module, frozenset(module._buffers)) for module in self._modules]
        self._saved = self._saved_names()

    def group(self, dtype: torch.dtype) -> list[Buffer]:
        return self._groups[dtype]

    @torch.no_grad()
    def values(self) -> Values:
        """A copy of the values."""
        return {dtype: _flat([b.tensor for b in group]) for dtype, group in self._groups.items()}

    @torch.no_grad()
    def forward_values(self) -> Values:
        """A copy of what `forward` has left.

        Raises:
            UserError: (exit 10) when a buffer that checkpoints hold is new, or has another shape or dtype now.
        """
        if len(saved := self._saved_names()) != len(self._saved):
            new = ", ".join(sorted({name for name in saved if name not in self._saved}))
            raise UserError(
                f"forward makes the buffer {new}, which a new model would not have to load a checkpoint into: register "
                "it in the constructor, in its final shape, or with persistent=False",
                ExitCode.USER_CODE,
            )
        return {dtype: _flat([_same_kind(b) for b in group]) for dtype, group in self._groups.items()}

    @torch.no_grad()
    def restore(self, values: Values) -> None:
        """Makes the buffers what they were when `values` were copied."""
        for module, names in self._names:
            if len(module._buffers) > len(names):  # caches, which are made again
                for name in module._buffers.keys() - names:
                    del module._buffers[name]
        for module, name in self._empty:
            module._buffers[name] = None
        for dtype, group in self._groups.items():
            for buffer in group:
                buffer.restore()
            targets = [_real(buffer.tensor) for buffer in group]
            parts = values[dtype].split(self.numbers[dtype])
            torch._foreach_copy_(targets, [part.view(t.shape) for part, t in zip(parts, targets, strict=True)])

    def _saved_names(self) -> list[str]:
        """Of all buffers that a checkpoint would hold."""
        return [
            name
            for module in self._modules
            for name, tensor in module._buffers.items()
            if tensor is not None and name not in module._non_persistent_buffers_set
        ]


def _same_kind(buffer: Buffer) -> Tensor:
    """What was found; of a buffer that no checkpoint holds, such as a cache that has grown, what was there before."""
    found, known = buffer.current().resolve_conj(), buffer.tensor
    if (found.shape, found.dtype, found.device) == (known.shape, known.dtype, known.device):
        return found
    if not buffer.is_saved:
        return known
    raise UserError(
        f"forward changes the buffer {buffer.name} from {known.dtype} {list(known.shape)} on {known.device} to "
        f"{found.dtype} {list(found.shape)} on {found.device}: a buffer keeps its shape, dtype and device, or is "
        "registered with persistent=False",
        ExitCode.USER_CODE,
    )


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([_real(tensor).reshape(-1) for tensor in tensors])


class StepBuffers:
    """A model's buffers over a step.

    Args:
        own: the numbers of this rank's microbatches.
        microbatches: V, those of all ranks.
    """

    def __init__(self, model: nn.Module, exchange: Exchange, own: range, microbatches: int) -> None:
        self._set = BufferSet(model)
        self._exchange, self._own, self._microbatches = exchange, own, microbatches
        kinds = self._set.numbers
        self._floats = [dtype for dtype in kinds if dtype.is_floating_point or dtype.is_complex]
        self._widest = reduce(torch.promote_types, (_real_dtype(dtype) for dtype in self._floats), torch.bfloat16)
        if len(self._floats) == 1:
            self._widest = _real_dtype(self._floats[0])
        self._integers = _Integers(self._set, [dtype for dtype in kinds if dtype not in self._floats], microbatches)
        self._before: Values = {}
        self._nodes: BinaryCounter[Tensor] = BinaryCounter(microbatches, torch.Tensor.add_)
        self._number = own.start
        self._versions: list[tuple[int, int]] = []

    def begin_step(self) -> None:
        self._before = self._set.values()
        self._nodes = BinaryCounter(self._microbatches, torch.Tensor.add_)
        self._integers.begin_step()

    def begin(self, number: int) -> None:
        """Before a microbatch: all of them start from the same values."""
        self._number = number
        if number != self._own.start:
            self.restore()

    def restore(self) -> None:
        """The values from before the step."""
        self._set.restore(self._before)

    @torch.no_grad()
    def keep(self) -> None:
        """Takes what the microbatch that has just run leaves behind."""
        found = self._set.forward_values()
        self._integers.keep(found, self._before)
        if self._floats:
            after, before = (self._joined(values) for values in (found, self._before))
            # Beside each number, in how many microbatches it was changed.
            self._nodes.push(self._number, torch.cat([after, (after != before).to(after.dtype)]))

    def take(self) -> list[Tensor]:
        """What this rank's nodes have left, from left to right, as Exchange.mean_into takes it; called when the last
        forward is over."""
        self._versions = self._seen()
        self.keep()
        return [self._nodes.nodes[node] for node in sorted(self._nodes.nodes)]

    @torch.no_grad()
    def finish_step(self, mean: Tensor | None) -> None:
        """Gives all buffers their values after the step.

        Args:
            mean: what the exchange has made of `take`; None where that gave nothing.
        """
        if self._versions != self._seen():
            raise UserError("a buffer changes in the backward after the last gradient is there", ExitCode.USER_CODE)
        after = self._integers.after(self._before, self._exchange)
        if mean is not None:
            before = self._joined(self._before)
            new, changed = mean.chunk(2) if mean.numel() else (mean, mean)
            parts = torch.where(changed > 0, new, before).split([sum(self._set.numbers[d]) for d in self._floats])
            after |= dict(zip(self._floats, parts, strict=True))
        self._set.restore(after)

    def check(self) -> None:
        """Raises UserError (exit 10) when a counter has not advanced alike in all microbatches since the last check."""
        self._integers.check()

    def _joined(self, values: Values) -> Tensor:
        return torch.cat([values[dtype].to(self._widest) for dtype in self._floats])

    def _seen(self) -> list[tuple[int, int]]:
        return [(id(tensor), tensor._version) for tensor in (buffer.current() for buffer in self._set.buffers)]


def _real_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


class _Integers:
    """The integer buffers over a step. A counter c has changed by the same d in all V microbatches exactly when
    V · Σd² = (Σd)², the case of equality in Cauchy and Schwarz's inequality: two sums tell it, whoever has which."""

    def __init__(self, buffers: BufferSet, dtypes: Sequence[torch.dtype], microbatches: int) -> None:
        self._dtypes, self._microbatches = dtypes, microbatches
        self._buffers = [buffer for dtype in dtypes for buffer in buffers.group(dtype)]
        several = [not buffer.is_counter for buffer in self._buffers]
        self._sizes = torch.tensor([b.tensor.numel() for b in self._buffers], dtype=torch.int64)
        device = self._buffers[0].tensor.device if self._buffers else None
        self._is_histogram = torch.tensor(several, dtype=torch.bool).repeat_interleave(self._sizes).to(device)
        self._unlike = torch.zeros_like(self._is_histogram)
        # BatchNorm's are known to count steps, and most models have no others: nothing has to be exchanged for them.
        self._are_known = all(
            isinstance(module, nn.modules.batchnorm._NormBase) and name == "num_batches_tracked"
            for buffer in self._buffers
            for module, name in buffer.places
        )

        self._last: Values = {}
        self._sums: Tensor | None = None

    def begin_step(self) -> None:
        self._sums = None

    def keep(self, found: Values, before: Values) -> None:
        self._last = found
        if not self._are_known:
            change = self._joined(found) - self._joined(before)
            both = torch.cat([change, change * change])
            self._sums = both if self._sums is None else self._sums.add_(both)

    def after(self, before: Values, exchange: Exchange) -> Values:
        """By dtype, what the buffers hold after the step."""
        if self._sums is None:
            return {dtype: self._last[dtype] for dtype in self._dtypes}
        changes, squares = exchange.all_reduce_(self._sums).chunk(2)
        self._unlike |= ~self._is_histogram & (self._microbatches * squares != changes * changes)
        values = torch.where(self._is_histogram, self._joined(before) + changes, self._joined(self._last))
        parts = values.split([before[dtype].numel() for dtype in self._dtypes])
        return {dtype: part.to(dtype) for dtype, part in zip(self._dtypes, parts, strict=True)}

    def check(self) -> None:
        if not self._are_known and bool(self._unlike.any()):
            first = int(self._unlike.nonzero()[0])
            buffer = self._buffers[int((self._sizes.cumsum(0) <= first).sum())]
            raise buffer.unlike()

    def _joined(self, values: Values) -> Tensor:
        return torch.cat([values[dtype].to(torch.int64) for dtype in self._dtypes])
