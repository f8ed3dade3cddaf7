"""Synthetic images for benchmarks: quick to make, of any shape and number, with something to learn in them."""

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from dist_train.config.schema import Synthetic
from dist_train.data.datasets.base import Crop, ImageSet, Splits, crop_each
from dist_train.randomness import uniform

_OFFSETS = 1 << 16
"""Places in the store of noise that an image's noise may begin at."""


class SyntheticImages(ImageSet):
    """A wave for each class, under noise; image and class are functions of the index alone.

    Making an image is two copies: its class's wave, and a window of one fixed store of noise, each at half strength.
    """

    in_memory = by_row = threads = True

    def __init__(self, config: Synthetic, first: int, size: int) -> None:
        self.shape = (config.shape[0], config.shape[1], config.shape[2])
        self._first, self._size, self._classes = first, size, config.classes
        self._waves = _waves(config.classes, self.shape)
        store = uniform(0, "synthetic noise", np.arange(_OFFSETS + int(np.prod(self.shape))))
        self._noise = (store[:, 0] * 128).astype(np.uint8)

    def __len__(self) -> int:
        return self._size

    def __getitems__(self, indices: np.ndarray, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
        draws = uniform(0, "synthetic sample", indices + self._first, draws=2)
        classes = (draws[:, 0] * self._classes).astype(np.int64)
        windows = sliding_window_view(self._noise, int(np.prod(self.shape)))
        images = windows[(draws[:, 1] * _OFFSETS).astype(np.int64)].reshape(-1, *self.shape)
        images += self._waves[classes]
        return crop_each(torch.from_numpy(images), crop), torch.from_numpy(classes)


def _waves(classes: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A plane wave for each class, of its own direction, length and phases: uint8 [classes, C, H, W], below 128."""
    channels, height, width = shape
    numbers = np.arange(classes)
    cycles = uniform(0, "synthetic direction", numbers, draws=2)[:, :, None, None, None] * 4 - 2
    phases = uniform(0, "synthetic phase", numbers, draws=channels)[:, :, None, None]
    rows, columns = np.arange(height)[:, None] / height, np.arange(width) / width
    waves = np.empty((classes, *shape), dtype=np.uint8)
    for number in range(classes):  # one by one: floats of a thousand classes at once would be gigabytes
        angle = cycles[number, 0] * rows + cycles[number, 1] * columns + phases[number]
        waves[number] = 63.5 + 63.5 * np.sin(2 * np.pi * angle)
    return waves


def build(config: Synthetic, local_rank0_first: Any) -> Splits:
    train = SyntheticImages(config, 0, config.size)
    evaluation = SyntheticImages(config, config.size, config.eval_size)
    names = tuple(str(number) for number in range(config.classes))
    return Splits(train=train, evaluation=evaluation, classes=names, shape=train.shape)
