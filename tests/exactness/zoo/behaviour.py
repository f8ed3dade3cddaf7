"""Modules with state of other kinds: draws, attributes, hooks, extra state, functions of their own."""

import os
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.exactness.zoo.buffers import Habit


class _Noisy(Habit):
    """Adds a number that it draws, in training, in evaluation or in both."""

    modes: tuple[bool, ...] = (True, False)

    def draw(self):
        raise NotImplementedError

    def middle(self, hidden):
        return hidden + (0.1 * self.draw() if self.training in self.modes else 0)


class DrawsPython(_Noisy):
    def draw(self):
        return random.random()


class DrawsNumpy(_Noisy):
    def draw(self):
        return float(np.random.rand())


class DrawsTorch(_Noisy):
    def draw(self):
        return torch.rand(8)


class DrawsInEvaluation(DrawsTorch):
    modes = (False,)


class DropsOutAlways(Habit):
    """As Monte Carlo dropout does."""

    def middle(self, hidden):
        return F.dropout(hidden, 0.5, training=True)


class OwnTorchGenerator(_Noisy):
    def build(self):
        self.generator = torch.Generator().manual_seed(3)

    def draw(self):
        return torch.rand(8, generator=self.generator)


class OwnTorchGeneratorInEvaluation(OwnTorchGenerator):
    modes = (False,)


class OwnPythonRandom(_Noisy):
    def build(self):
        self.random = random.Random(3)

    def draw(self):
        return self.random.random()


class OwnPythonRandomInEvaluation(OwnPythonRandom):
    modes = (False,)


class OwnNumpyGenerator(_Noisy):
    def build(self):
        self.rng = np.random.default_rng(3)

    def draw(self):
        return float(self.rng.random())


class OwnNumpyGeneratorInEvaluation(OwnNumpyGenerator):
    modes = (False,)


class CountsForwards(Habit):
    """An attribute that changes and has an effect."""

    def build(self):
        self.calls = 0

    def middle(self, hidden):
        self.calls += 1
        return hidden / (1 + 0.1 * self.calls)


class CountsSteps(CountsForwards):
    """In training alone."""

    def middle(self, hidden):
        self.calls += self.training
        return hidden / (1 + 0.1 * self.calls)


class RunningAttribute(Habit):
    """A tensor that is no buffer."""

    def build(self):
        self.mean = torch.zeros(8)

    def middle(self, hidden):
        if self.training:
            self.mean = 0.75 * self.mean + 0.25 * hidden.detach().mean(0)
        return hidden - self.mean


class RunningList(Habit):
    """The last features, in a list."""

    def build(self):
        self.last_seen = []

    def middle(self, hidden):
        self.last_seen = [*self.last_seen, hidden.detach().mean(0)][-3:]
        return hidden - 0.1 * sum(self.last_seen)


class StoresFeatures(Habit):
    """Kept for whoever looks; no result depends on it."""

    def middle(self, hidden):
        self.features = hidden.detach()
        return hidden


class Journal(Habit):
    """Grows, and no result depends on it."""

    def build(self):
        self.journal = []

    def middle(self, hidden):
        self.journal.append(float(hidden.detach().mean()))
        return hidden


class StoresByHook(Habit):
    def build(self):
        self.seen = {}
        self.first.register_forward_hook(lambda module, inputs, output: self.seen.update(first=output.detach()))


class Hooks(Habit):
    """Change what goes forward and what comes back."""

    def build(self):
        self.first.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))
        self.first.register_forward_hook(lambda module, inputs, output: output + 0.1)
        self.last.register_full_backward_hook(lambda module, given, taken: (given[0] * 0.5,))
        self.first.weight.register_hook(lambda gradient: gradient * 2)


class CountingHook(Habit):
    """Its effect grows with the number of backwards."""

    def build(self):
        self.backwards = 0
        self.last.weight.register_hook(self.scale)

    def scale(self, gradient):
        self.backwards += 1
        return gradient * (1 + 0.1 * self.backwards)


class _Checkpointed(Habit):
    """The inner part runs once more in the backward."""

    reentrant = False

    def build(self):
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))

    def middle(self, hidden):
        return checkpoint(self.inner, hidden, use_reentrant=self.reentrant)


class CheckpointedReentrant(_Checkpointed):
    reentrant = True


class CheckpointedNot(_Checkpointed):
    pass


class ExtraState(Habit):
    """JSON-like."""

    def build(self):
        self.steps = 3

    def get_extra_state(self):
        return {"steps": self.steps, "names": ["a", "b"], "rate": 0.1}

    def set_extra_state(self, state):
        self.steps = state["steps"]


class ExtraTensors(ExtraState):
    def get_extra_state(self):
        return {"steps": torch.tensor(self.steps)}

    def set_extra_state(self, state):
        self.steps = int(state["steps"])


class ExtraStateOneWay(ExtraState):
    """Saves and does not load."""

    def set_extra_state(self, state):
        raise RuntimeError("not written yet")


class ExtraStateChanging(ExtraState):
    """Counts what it has seen, and saves it."""

    def middle(self, hidden):
        self.steps += self.training
        return hidden / (1 + 0.1 * self.steps)


class SavesAndDoesNotLoad(Habit):
    """Its state_dict has a key that its load_state_dict does not know."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "version"] = torch.tensor(2)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values * 2

    @staticmethod
    def backward(context, gradient):
        return gradient * 2


class OwnFunction(Habit):
    def middle(self, hidden):
        return _Doubled.apply(hidden)


class _Scaled(torch.autograd.Function):
    """Changes the running size of gradients in its backward."""

    @staticmethod
    def forward(context, values, size):
        context.size = size
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        context.size.lerp_(gradient.abs().mean(), 0.25)
        return gradient / (1 + context.size), None


class ChangesInBackward(Habit):
    def build(self):
        self.register_buffer("size", torch.tensor(0.5))

    def middle(self, hidden):
        return _Scaled.apply(hidden, self.size)


class KnowsTheRanks(Habit):
    """What no check inside of one rank can find: its output depends on the number of ranks."""

    def middle(self, hidden):
        return hidden * int(os.environ["WORLD_SIZE"])


class SeveralOutputs(Habit):
    """For the task that takes them."""

    def build(self):
        self.side = nn.Linear(8, 3)

    def forward(self, images):
        hidden = torch.relu(self.first(images.flatten(1)))
        return {"classes": self.last(hidden), "more": (self.side(hidden), hidden.mean())}


class ReadsText(Habit):
    """Inputs are a picture and its caption."""

    def forward(self, inputs):
        lengths = torch.tensor([float(len(text)) for text in inputs["caption"]])
        assert len(lengths) == len(inputs["image"]), f"{len(lengths)} captions for {len(inputs['image'])} images"
        return super().forward(inputs["image"].float() / 255) + 0.1 * lengths[:, None]
