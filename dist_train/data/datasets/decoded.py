"""Images that are decoded one by one as they are read, and brought to one size; samples that have names."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from dist_train.data.datasets.base import Crop, ImageSet
from dist_train.data.resize import centre_crop, resize_shorter_side


class Named(ABC):
    """A data set whose samples have names that a user knows."""

    @abstractmethod
    def path(self, index: int) -> str:
        """The file of a sample, and its place in there where it holds several: `images.tar!n01/0003`."""


class DecodedImages(ImageSet, Named):
    """RGB images of any size, as squares of `image_size` pixels.

    Unless a crop is given, the shorter side is resized to `resize`, then the middle is cut out.
    """

    def __init__(self, image_size: int, resize: int | None) -> None:
        self._image_size, self._resize = image_size, resize or image_size
        self.shape = (3, image_size, image_size)

    @abstractmethod
    def read(self, index: int) -> tuple[Tensor, int]:
        """The image of a sample as it is stored, uint8 [3, h, w], and its class."""

    def __getitems__(self, indices: np.ndarray, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
        size = self._image_size
        images, targets = torch.empty(len(indices), *self.shape, dtype=torch.uint8), []
        for place, index in enumerate(indices.tolist()):
            image, target = self.read(index)
            images[place] = crop(place, image, size, size) if crop else fitted(image, size, self._resize)
            targets.append(target)
        return images, torch.tensor(targets, dtype=torch.int64)


def fitted(image: Tensor, size: int, resize: int) -> Tensor:
    """uint8 [3, h, w] to uint8 [3, size, size]: the middle of the image, its shorter side `resize` pixels long."""
    return centre_crop(resize_shorter_side(image, resize), size)
