"""Fully connected layers."""

import math

from torch import nn

from dist_train.config.schema import Mlp


def build(config: Mlp, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Linear, ReLU and dropout for each hidden width, then a linear layer: [m, *shape] -> [m, classes]."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for hidden in config.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), *([nn.Dropout(config.dropout)] if config.dropout else [])]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, classes))
