"""The models of the benchmarks, the same modules for both sides of a comparison."""

from torch import nn

from dist_train import models
from dist_train.config.schema import Cnn, Gpt, Mlp, ResnetCifar

CONTEXT, VOCABULARY = 64, 65
"""Of the language model: configs/char_lm.yaml's."""
CONFIGS = {"cnn": Cnn(), "resnet20": ResnetCifar(depth=20), "mlp": Mlp(name="mlp", hidden=[32])}


def build(name: str) -> nn.Module:
    """The model `name` for images of CIFAR's size and ten classes, in fp32 on the CPU."""
    return models.build(CONFIGS[name], shape=(3, 32, 32), classes=10, seed=0)


def gpt() -> nn.Module:
    """The transformer of configs/char_lm.yaml, of 0.8 M parameters, in fp32 on the CPU."""
    config = Gpt(name="gpt", layers=4, heads=4, width=128)
    return models.build(config, shape=(CONTEXT,), classes=None, vocabulary=VOCABULARY, seed=0)
