"""The models of the benchmarks, the same modules for both sides of a comparison."""

from torch import nn

from dist_train import models
from dist_train.config.schema import Cnn, ResnetCifar

CONFIGS = {"cnn": Cnn(), "resnet20": ResnetCifar(depth=20)}


def build(name: str) -> nn.Module:
    """The model `name` for images of CIFAR's size and ten classes, in fp32 on the CPU."""
    return models.build(CONFIGS[name], shape=(3, 32, 32), classes=10, seed=0)
