"""Modules whose parameters are out of the ordinary, or change outside of the optimizer."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from tests.exactness.zoo.buffers import Habit


class MaxNorm(Habit):
    """An embedding that scales down its rows in forward."""

    def build(self):
        self.table = nn.Embedding(5, 8, max_norm=0.5)

    def middle(self, hidden):
        return hidden + self.table((hidden.detach()[:, 0] * 10).long().clamp(0, 4))


class ActNorm(Habit):
    """Parameters that begin with what the first batch says (Kingma and Dhariwal, 2018)."""

    def build(self):
        self.shift = nn.Parameter(torch.zeros(8))
        self.begun = False

    def middle(self, hidden):
        if not self.begun:
            self.begun = True
            self.shift.data.copy_(-hidden.detach().mean(0))
        return hidden + self.shift


class Teacher(Habit):
    """A frozen copy that follows the weights by momentum, in forward (He et al., 2019)."""

    def build(self):
        self.student = nn.Linear(8, 8)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def middle(self, hidden):
        if self.training:
            with torch.no_grad():
                for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    old.mul_(0.5).add_(new, alpha=0.5)
                    old.add_(hidden.mean(), alpha=0.01)
        return self.student(hidden) + self.teacher(hidden)


class Tied(Habit):
    def build(self):
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def middle(self, hidden):
        return self.other(self.one(hidden))


class SharedModule(Habit):
    """One module under two names."""

    def build(self):
        self.one = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.other = self.one

    def middle(self, hidden):
        return self.other(self.one(hidden))


class Frozen(Habit):
    def build(self):
        self.first.requires_grad_(False)


class Unused(Habit):
    def build(self):
        self.idle = nn.Linear(8, 8)


class Complex(Habit):
    def build(self):
        self.phase = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def middle(self, hidden):
        return (hidden * self.phase).abs() + (hidden * self.phase).real


class Sparse(Habit):
    def build(self):
        self.table = nn.Embedding(5, 8, sparse=True)

    def middle(self, hidden):
        return hidden + self.table((hidden.detach()[:, 0] * 10).long().clamp(0, 4))


class Double(Habit):
    def build(self):
        self.inner = nn.Linear(8, 8).double()

    def middle(self, hidden):
        return self.inner(hidden.double()).float()


class Bfloat16(Habit):
    def build(self):
        self.inner = nn.Linear(8, 8).bfloat16()

    def middle(self, hidden):
        return self.inner(hidden.bfloat16()).float()


class Scalar(Habit):
    def build(self):
        self.gain = nn.Parameter(torch.tensor(1.5))

    def middle(self, hidden):
        return hidden * self.gain


class Transposed(Habit):
    """Parameters whose elements do not lie in memory as their shape says."""

    def build(self):
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64).view(4, 16).t())
        self.back = nn.Parameter(torch.linspace(-0.5, 1, 128).view(16, 8).t())

    def middle(self, hidden):
        return F.relu(hidden @ self.back) @ self.weight @ torch.ones(4, 8)


class ChannelsLast(Habit):
    """Only its convolution is."""

    def build(self):
        self.convolution = nn.Conv2d(2, 8, 2).to(memory_format=torch.channels_last)

    def middle(self, hidden):
        return self.convolution(hidden.view(-1, 2, 2, 2)).flatten(1)


class Permuted(Habit):
    def build(self):
        self.cube = nn.Parameter(torch.linspace(-1, 1, 48).view(2, 3, 8).permute(2, 0, 1))

    def middle(self, hidden):
        return torch.einsum("mi,iab,jab->mj", hidden, self.cube, self.cube)


class OldWeightNorm(Habit):
    def build(self):
        self.inner = torch.nn.utils.weight_norm(nn.Linear(8, 8))

    def middle(self, hidden):
        return self.inner(hidden)


class WeightNorm(OldWeightNorm):
    def build(self):
        self.inner = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))


class OldSpectralNorm(OldWeightNorm):
    def build(self):
        self.inner = torch.nn.utils.spectral_norm(nn.Linear(8, 8))


class SpectralNorm(OldWeightNorm):
    def build(self):
        self.inner = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))


class Lazy(OldWeightNorm):
    def build(self):
        self.inner = nn.LazyLinear(8)


class Lists(Habit):
    """Parameters in lists and dicts."""

    def build(self):
        self.list = nn.ParameterList([torch.ones(8), torch.ones(8)])
        self.dict = nn.ParameterDict({"a": torch.ones(8)})

    def middle(self, hidden):
        return hidden * self.list[0] + self.list[1] * self.dict["a"]


class FrozenBatchNorm(Habit):
    """Put into eval mode by the constructor, and never again."""

    def build(self):
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_mean.fill_(0.3)
        self.norm.eval()

    def middle(self, hidden):
        return self.norm(hidden)


class KeepsEvalMode(FrozenBatchNorm):
    """By a `train` of its own."""

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


class FrozenDropout(Habit):
    def build(self):
        self.drop = nn.Dropout(0.5)
        self.drop.eval()

    def middle(self, hidden):
        return self.drop(hidden)


class Toggles(Habit):
    """Every other forward drops out."""

    def build(self):
        self.drop = nn.Dropout(0.5)

    def middle(self, hidden):
        hidden = self.drop(hidden)
        self.drop.train(not self.drop.training)
        return hidden


class TogglesInside(Habit):
    """The mode is put back before forward ends."""

    def build(self):
        self.norm = nn.BatchNorm1d(8)

    def middle(self, hidden):
        mode = self.norm.training
        self.norm.eval()
        calm = self.norm(hidden)
        self.norm.train(mode)
        return calm + self.norm(hidden)
