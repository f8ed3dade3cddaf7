"""Modules with buffers of every kind."""

import math

import torch
from torch import nn


class Habit(nn.Module):
    """[m, C, H, W] -> [m, classes]; what is out of the ordinary is in `build` and `middle`, [m, 8] -> [m, 8]."""

    def __init__(self, shape, classes):
        super().__init__()
        self.first = nn.Linear(math.prod(shape), 8)
        self.last = nn.Linear(8, classes)
        self.build()

    def build(self):
        pass

    def middle(self, hidden):
        return hidden

    def forward(self, images):
        return self.last(self.middle(torch.relu(self.first(images.flatten(1)))))


class Running(Habit):
    """A running mean of the features, taken off them."""

    dtype, persistent, size = torch.float32, True, 8

    def build(self):
        self.register_buffer("mean", torch.zeros(self.size, dtype=self.dtype), persistent=self.persistent)

    def middle(self, hidden):
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(hidden.detach().mean(0).to(self.dtype), 0.25)
        return hidden - self.mean.real.to(hidden.dtype)


class RunningFloat64(Running):
    dtype = torch.float64


class RunningBfloat16(Running):
    dtype = torch.bfloat16


class RunningComplex(Running):
    dtype = torch.complex64


class RunningNotSaved(Running):
    """After a resume it begins anew."""

    persistent = False


class RunningMixed(Habit):
    """Buffers of several types side by side."""

    def build(self):
        self.register_buffer("halves", torch.zeros(8, dtype=torch.bfloat16))
        self.register_buffer("whole", torch.zeros(3, 8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int32))
        self.register_buffer("doubles", torch.zeros(8, dtype=torch.float64))

    def middle(self, hidden):
        if self.training:
            with torch.no_grad():
                mean = hidden.detach().mean(0)
                self.halves.lerp_(mean.bfloat16(), 0.25)
                self.whole.lerp_(mean.expand(3, 8), 0.25)
                self.doubles.lerp_(mean.double(), 0.25)
                self.steps += 1
        return hidden - self.halves.float() - self.whole[1] - self.doubles.float()


class RunningScalar(Habit):
    def build(self):
        self.register_buffer("scale", torch.tensor(1.0))

    def middle(self, hidden):
        if self.training:
            self.scale.mul_(0.75).add_(0.25 * hidden.detach().abs().mean())
        return hidden / (1 + self.scale)


class Reassigned(Habit):
    """Assigned anew instead of changed in place."""

    def build(self):
        self.register_buffer("mean", torch.zeros(8))

    def middle(self, hidden):
        if self.training:
            self.mean = 0.75 * self.mean + 0.25 * hidden.detach().mean(0)
        return hidden - self.mean


class ReassignedCount(Habit):
    def build(self):
        self.register_buffer("seen", torch.tensor(0))

    def middle(self, hidden):
        if self.training:
            self.seen = self.seen + 1
        return hidden / (1 + 0.1 * self.seen)


class CountOfNoDimension(Habit):
    shape: tuple[int, ...] = ()

    def build(self):
        self.register_buffer("seen", torch.zeros(self.shape, dtype=torch.int64))

    def middle(self, hidden):
        if self.training:
            self.seen += 1
        return hidden / (1 + 0.1 * self.seen)


class CountOfOne(CountOfNoDimension):
    shape = (1,)


class CountOfSamples(Habit):
    def build(self):
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))

    def middle(self, hidden):
        if self.training:
            self.samples += len(hidden)
        return hidden / (1 + 0.1 * self.samples)


class Histogram(Habit):
    """Integers that depend on the data."""

    def build(self):
        self.register_buffer("histogram", torch.zeros(8, dtype=torch.int64))

    def middle(self, hidden):
        if self.training:
            self.histogram += torch.bincount(hidden.argmax(dim=1), minlength=8)
        return hidden / (1 + self.histogram)


class Observer(Habit):
    """The smallest and the largest seen."""

    def build(self):
        self.register_buffer("low", torch.full((8,), 10.0))
        self.register_buffer("high", torch.full((8,), -10.0))

    def middle(self, hidden):
        if self.training:
            self.low.copy_(torch.minimum(self.low, hidden.detach().amin(0)))
            self.high.copy_(torch.maximum(self.high, hidden.detach().amax(0)))
        return (hidden - self.low) / (self.high - self.low + 1)


class FirstBatch(Habit):
    """Begins with what the first batch has, by a flag among the buffers."""

    def build(self):
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("center", torch.zeros(8))

    def middle(self, hidden):
        if self.training and not self.begun:
            self.center.copy_(hidden.detach().mean(0))
            self.begun.fill_(True)
        return hidden - self.center


class ChangesInEvaluation(Habit):
    def build(self):
        self.register_buffer("mean", torch.zeros(8))

    def middle(self, hidden):
        if not self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.25)
        return hidden - self.mean


class ReassignedInEvaluation(Habit):
    def build(self):
        self.register_buffer("seen", torch.tensor(0))

    def middle(self, hidden):
        if not self.training:
            self.seen = self.seen + 1
        return hidden / (1 + 0.1 * self.seen)


class Late(Habit):
    """Registered by the first forward."""

    def middle(self, hidden):
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(8))
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.25)
        return hidden - self.mean


class NoneAtFirst(Habit):
    def build(self):
        self.register_buffer("mean", None)

    def middle(self, hidden):
        if self.mean is None:
            self.mean = torch.zeros(8)
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.25)
        return hidden - self.mean


class StaysNone(Habit):
    def build(self):
        self.register_buffer("mean", None)


class Constant(Habit):
    """Says so when a constant is no longer what it was."""

    value, persistent = 0.0, True

    def expected(self):
        return torch.linspace(0.1, 1, 80).view(10, 8) + self.value

    def build(self):
        self.register_buffer("constant", self.expected(), persistent=self.persistent)

    def middle(self, hidden):
        if not torch.equal(self.constant, self.expected()):
            raise RuntimeError(f"the constant has become {self.constant.flatten()[:3].tolist()}, …")
        return hidden + self.constant[0].clamp(-1, 1)


class ConstantNotSaved(Constant):
    persistent = False


class MaskOfInfinities(Constant):
    value = -torch.inf


class MaskOfLargest(Constant):
    """As an attention mask has it; six of them added are infinite."""

    value = torch.finfo(torch.float32).min


class NotANumber(Habit):
    """A buffer with a NaN in it, for what is not known yet."""

    def build(self):
        self.register_buffer("unknown", torch.tensor([0.5, torch.nan]))

    def middle(self, hidden):
        return hidden * self.unknown[0]


class Expanded(Habit):
    def build(self):
        self.register_buffer("scale", torch.tensor([0.3]).expand(8))

    def middle(self, hidden):
        return hidden * self.scale


class Transposed(Habit):
    """Its elements do not lie in memory as its shape says."""

    def build(self):
        self.register_buffer("table", torch.arange(16.0).view(2, 8).t())

    def middle(self, hidden):
        if self.training:
            self.table.lerp_(hidden.detach().mean(0)[:, None] * torch.tensor([1.0, 2.0]), 0.25)
        return hidden - self.table[:, 1]


class Shared(Habit):
    """One tensor under two names."""

    def build(self):
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("again", self.mean)

    def middle(self, hidden):
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.25)
        return hidden - self.again


class Cache(Habit):
    """A table that grows with the largest shape seen, and is not saved, as rotary embeddings have it."""

    def build(self):
        self.register_buffer("cache", torch.zeros(0), persistent=False)

    def middle(self, hidden):
        if len(self.cache) < len(hidden):
            self.cache = torch.arange(len(hidden)).float().cos()
        return hidden + self.cache[: len(hidden), None] * 0.1


class Bools(Habit):
    """Which units were ever active: true once it was in any sample."""

    def build(self):
        self.register_buffer("active", torch.zeros(8, dtype=torch.bool))

    def middle(self, hidden):
        if self.training:
            self.active |= (hidden.detach() > 0.5).any(0)
        return hidden * (1 + self.active)
