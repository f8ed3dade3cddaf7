"""Images that are decoded one by one as they are read, and brought to one size; samples that have names."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dist_train.config.schema import ImageCache
from dist_train.data.cache.files import Stamp
from dist_train.data.cache.form import Form, fitted
from dist_train.data.cache.images import KeptImages, Origin, Room
from dist_train.data.datasets.base import Crop, ImageSet
from dist_train.data.datasets.part import Part

if TYPE_CHECKING:
    from dist_train.data.datasets.huggingface import MappedTable
    from dist_train.data.tars.samples import TarSamples

Kept = tuple[KeptImages, KeptImages | None]
"""Squares as the model gets them, and what random_resized_crop cuts from."""


class Named(ABC):
    """A data set whose samples have names that a user knows."""

    @abstractmethod
    def path(self, index: int) -> str:
        """The file of a sample, and its place in there where it holds several: `images.tar!n01/0003`."""


class PartOf(Named):
    """A part of a large source, which has a `name` for each of its rows, and a `fingerprint`."""

    def __init__(self, source: "MappedTable | TarSamples", part: Part) -> None:
        self._source, self._part = source, part

    def __len__(self) -> int:
        return len(self._part)

    def path(self, index: int) -> str:
        return self._source.name(self._part[index])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self._part.rows(indices)

    def fingerprint(self) -> str:
        """Of all that the samples were chosen from."""
        return self._source.fingerprint()


def kept_images(config: ImageCache, size: int, resize: int | None, origin: Origin, room: Room) -> Kept:
    """The cache of a list of files."""
    squares = KeptImages(config, Form(size=size, resize=resize or size), origin, room)
    return squares, None if config.side is None else KeptImages(config, Form(side=config.side), origin, room)


class DecodedImages(ImageSet, Named):
    """RGB images of any size, as squares of `image_size` pixels.

    Unless a crop is given, the shorter side is resized to `resize`, then the middle is cut out.

    A set that may have a cache has the methods of its Source too.
    """

    def __init__(self, image_size: int, resize: int | None, kept: Kept | None = None) -> None:
        self._image_size, self._resize, self._kept = image_size, resize or image_size, kept
        self.shape = (3, image_size, image_size)
        self._targets = np.zeros(0 if kept is None else kept[0].origin.rows, dtype=np.int64)

    @abstractmethod
    def read(self, index: int) -> tuple[Tensor, int]:
        """The image of a sample as it is stored, uint8 [3, h, w], and its class."""

    def __getitems__(self, indices: np.ndarray, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
        images = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        pixels = images.numpy()  # which takes in a small image in a tenth of torch's time
        kept = self.kept(cuts=crop is not None)
        if kept is not None:
            rows = self.rows(indices)
            kept.look(self, indices, rows)
            places = kept.gather(rows, images) if crop is None else np.arange(len(indices))
            for place, image in zip(places.tolist(), kept.images(self, indices[places], rows[places]), strict=True):
                pixels[place] = (image if crop is None else crop(place, image, *self.shape[1:])).numpy()
            return images, self.targets_of(indices)
        targets = []
        for place, index in enumerate(indices.tolist()):
            image, target = self.read(index)
            pixels[place] = (
                fitted(image, self._image_size, self._resize) if crop is None else crop(place, image, *self.shape[1:])
            ).numpy()
            targets.append(target)
        return images, torch.tensor(targets, dtype=torch.int64)

    def in_place(self, indices: np.ndarray) -> tuple[Tensor, np.ndarray] | None:
        kept = self.kept(cuts=False)
        if kept is None or type(self).__getitems__ is not DecodedImages.__getitems__:
            return None
        rows = self.rows(indices)
        squares = kept.squares(rows)
        return None if squares is None else (squares, rows)

    def kept(self, *, cuts: bool) -> KeptImages | None:
        """The cache, if there is one.

        Args:
            cuts: of images that random_resized_crop cuts from.
        """
        return None if self._kept is None else self._kept[cuts]

    @property
    def caches(self) -> list[KeptImages]:
        """All there are."""
        return [kept for kept in self._kept or () if kept is not None]

    def prepare(self) -> None:
        """Finds the cache before processes are forked, so that each need not."""
        _ = [kept.folder for kept in self.caches]

    def targets_of(self, indices: np.ndarray) -> Tensor:
        """Each is read once."""
        rows = self.rows(indices)
        found = self._targets[rows] - 1
        for place in np.flatnonzero(found < 0).tolist():
            found[place] = self.target(int(indices[place]))
            self._targets[rows[place]] = found[place] + 1
        return torch.from_numpy(found)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The places of samples in their list of files, int64 [n]."""
        raise NotImplementedError

    def row(self, index: int) -> int:
        return int(self.rows(np.array([index]))[0])

    def target(self, index: int) -> int:
        """The class of a sample."""
        raise NotImplementedError

    def stamp(self, index: int) -> Stamp:
        raise NotImplementedError

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        return np.array([self.stamp(index) for index in indices.tolist()], dtype=np.int64).reshape(-1, 2)

    def encoded(self, index: int) -> tuple[bytes | bytearray, Stamp]:
        raise NotImplementedError
