"""Optimizers, data sets and tasks with habits of their own."""

import numpy as np
import torch
from torch.nn import functional as F

from dist_train.tasks.base import Task
from dist_train.tasks.classification import Classification


class _Momentum(torch.optim.Optimizer):
    """Plain momentum; what is out of the ordinary comes on top."""

    dtype = torch.float32

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.build()

    def build(self):
        pass

    def rate(self, group):
        return group["lr"]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            rate = self.rate(group)
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter, dtype=self.dtype)
                state["momentum"].mul_(0.9).add_(parameter.grad.to(self.dtype))
                parameter.sub_(self.direction(state["momentum"]).to(parameter.dtype), alpha=rate)

    def direction(self, momentum):
        return momentum


class DoubleState(_Momentum):
    """State of another type than the parameter's."""

    dtype = torch.float64


class HalfState(_Momentum):
    dtype = torch.bfloat16


class CountsInAttribute(_Momentum):
    def build(self):
        self.steps = 0

    def rate(self, group):
        self.steps += 1
        return group["lr"] / self.steps


class CountsInGroups(_Momentum):
    """As schedule-free optimizers do."""

    def build(self):
        for group in self.param_groups:
            group["k"] = 0

    def rate(self, group):
        group["k"] += 1
        return group["lr"] / group["k"]


class CountsInState(_Momentum):
    """Under a key that is no parameter."""

    def rate(self, group):
        self.state["all"]["steps"] = self.state["all"].get("steps", 0) + 1
        return group["lr"] / self.state["all"]["steps"]


class Noisy(_Momentum):
    """Draws in its step, as Langevin dynamics does."""

    def direction(self, momentum):
        return momentum + 0.01 * torch.randn_like(momentum)


class OwnGenerator(_Momentum):
    def build(self):
        self.generator = torch.Generator().manual_seed(3)

    def direction(self, momentum):
        return momentum + 0.01 * torch.randn(momentum.shape, generator=self.generator)


class SlowWeights(_Momentum):
    """Keeps a second set of weights in an attribute (Lookahead; Zhang et al., 2019)."""

    def build(self):
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        super().step()
        with torch.no_grad():
            for slow, fast in zip(self.slow, (p for group in self.param_groups for p in group["params"]), strict=True):
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)


class _Samples:
    classes = ("a", "b", "c", "d")

    def __init__(self, split):
        self.size = {"train": 26, "evaluation": 9}[split]

    def __len__(self):
        return self.size

    def image(self, index):
        return ((torch.arange(48).view(3, 4, 4) * 7 + 31 * index) % 256).to(torch.uint8)

    def __getitem__(self, index):
        return self.image(index), index % 4


class Captions(_Samples):
    shape = (3, 4, 4)

    def __getitem__(self, index):
        return {"image": self.image(index), "caption": "word " * (index % 5)}, index % 4


class OwnGeneratorData(_Samples):
    def __init__(self, split):
        super().__init__(split)
        self.rng = np.random.default_rng(3)

    def __getitem__(self, index):
        return self.image(index) // 2 + int(self.rng.integers(100)), index % 4


class OwnTorchGeneratorData(OwnGeneratorData):
    def __init__(self, split):
        super().__init__(split)
        self.rng = torch.Generator().manual_seed(3)

    def __getitem__(self, index):
        return self.image(index) // 2 + torch.randint(100, (), generator=self.rng).to(torch.uint8), index % 4


class CountsReads(_Samples):
    """Every read gives something else."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return self.image(index) // 2 + self.reads, index % 4


class Caches(_Samples):
    """Remembers what it has read; no sample depends on it."""

    def __init__(self, split):
        super().__init__(split)
        self.cache = {}

    def __getitem__(self, index):
        return self.cache.setdefault(index, self.image(index)), index % 4


class OfSeveralOutputs(Task):
    def loss(self, output, target):
        side, mean = output["more"]
        losses = F.cross_entropy(output["classes"], target, reduction="sum")
        return losses + 0.1 * side.square().sum() + 0.1 * mean * len(target), len(target)

    def metrics(self, sums):
        return {**super().metrics(sums), "accuracy": 0.0}


class CountsCalls(Classification):
    """A task whose loss changes with every call."""

    def __init__(self, classes):
        super().__init__(classes=classes)
        self.calls = 0

    def loss(self, output, target):
        self.calls += 1
        loss, count = super().loss(output, target)
        return loss / (1 + 0.1 * self.calls), count


class DrawsInLoss(Classification):
    """From torch's global generator."""

    def __init__(self, classes):
        super().__init__(classes=classes)

    def loss(self, output, target):
        loss, count = super().loss(output + 0.1 * torch.rand_like(output), target)
        return loss, count


class OwnTorchGeneratorTask(Classification):
    def __init__(self, classes):
        super().__init__(classes=classes)
        self.generator = torch.Generator().manual_seed(3)

    def loss(self, output, target):
        return super().loss(output + 0.1 * torch.rand(output.shape, generator=self.generator), target)
