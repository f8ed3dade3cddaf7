"""Several animals in one model: a training of all of them costs what one of each does."""

import importlib

from torch import nn


class Herd(nn.Module):
    """[m, C, H, W] -> [m, classes]: the mean of what the animals give, each of which has its own weights and buffers.

    Args:
        kinds: their classes, as `module:Class`.
    """

    def __init__(self, shape, classes, kinds):
        super().__init__()
        found = (kind.split(":") for kind in kinds)
        self.animals = nn.ModuleList(getattr(importlib.import_module(m), name)(shape, classes) for m, name in found)

    def forward(self, images):
        return sum(animal(images).float() for animal in self.animals) / len(self.animals)
