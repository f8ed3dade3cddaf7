"""Augmentation of single images, on uint8 where they are loaded; every draw is keyed by (seed, epoch, sample).

The steps follow the order of the config's list, except that random_resized_crop always comes first: it replaces the
resize from the file's size to the model's, so it is done while reading. Crops and flips that follow each other are one
copy (dist_train/data/windows.py). What needs a whole microbatch, or is better done on the device, is in
dist_train/data/device_transform.py.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.schema import ColorJitter, HorizontalFlip, RandAugment, RandomCrop, RandomResizedCrop
from dist_train.data.color import color_jitter
from dist_train.data.datasets.base import Crop
from dist_train.data.resize import resize
from dist_train.data.windows import Windows, cut
from dist_train.errors import UserError
from dist_train.randomness import key, seed_all, seeded, uniform

_ATTEMPTS = 10
"""How often to draw a crop until one fits into the image: as often as torchvision does."""


class Augment:
    """The steps of a config's `augment` list that change single images.

    Args:
        outside: what a mask has where its image is padded.
    """

    def __init__(self, items: Sequence[Any], seed: int, outside: int = 0) -> None:
        self._seed, self._outside = seed, outside
        self._crop = next((item for item in items if isinstance(item, RandomResizedCrop)), None)
        self._steps = [item for item in items if isinstance(item, _STEPS)]
        moving = (item for item in items if isinstance(item, (RandomResizedCrop, *_STEPS)))
        self._moving = next((item.name for item in moving if not isinstance(item, ColorJitter)), None)

    def crop(self, epoch: int, indices: np.ndarray) -> Crop | None:
        """The random resized crop of each of the samples `indices`, where the config has one."""
        return None if self._crop is None else resized_crop(self._crop, self._seed, epoch, indices)

    def prepare(self) -> None:
        """Runs each step once, so that everything that a first run imports and sets up is in place."""
        self(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0, np.zeros(1, dtype=np.int64))
        if _tv_tensors() is not None:
            self.mover((8, 8), 0, 0)

    def check_targets(self, targets: Any) -> None:
        """Raises UserError where an image would move under its target: a mask, a map, boxes, points."""
        if self._moving is not None and (shape := _place_in_image(targets)) is not None:
            raise UserError(
                f"augment: {self._moving} would move the images and not their targets, which have the shape {shape}: "
                f"{_ADVICE}"
            )

    def mover(self, size: tuple[int, int], epoch: int, index: int) -> Callable[[Any], Any]:
        """A function that moves a part of the target of sample `index` as its image of `size`, height and width, is
        moved, if the part is one of torchvision's tv_tensors: a mask, boxes, an image.

        Raises:
            UserError: when it is of another size, or cannot be moved so.
        """
        from torchvision.transforms.v2 import functional

        tv_tensors, row = _tv_tensors(), np.array([index])

        def move(part: Any) -> Any:
            if self._moving is None or not lies_in_image(part):
                self.check_targets(part[None] if isinstance(part, Tensor | np.ndarray) else part)
                return part
            kind = type(part).__name__
            if tuple(functional.get_size(part)) != size:
                theirs = list(functional.get_size(part))
                raise UserError(
                    f"augment: sample {index:,} has an image of {list(size)} pixels and a {kind} of {theirs}"
                )
            fill = self._outside if isinstance(part, tv_tensors.Mask) else 0
            if fill and not part.is_floating_point() and not 0 <= fill <= torch.iinfo(part.dtype).max:
                part = tv_tensors.wrap(part.to(torch.int64), like=part)
            if self._crop is not None:
                draws = _crop_draws(self._seed, epoch, row)[0]
                part = functional.resized_crop(part, *crop_box(self._crop, *size, draws), list(size), antialias=True)
            for item in self._steps:
                if isinstance(item, RandAugment):
                    raise UserError(f"augment: {item.name} would move the images and not their {kind}: {_ADVICE}")
                if isinstance(item, RandomCrop):
                    [[top, left]] = _places(item, self._seed, epoch, row)
                    part = functional.pad(part, [item.padding] * 4, fill=fill)
                    part = functional.crop(part, int(top), int(left), *size)
                elif isinstance(item, HorizontalFlip) and _flipped(item, self._seed, epoch, row)[0]:
                    part = functional.horizontal_flip(part)
            return part

        return move

    @property
    def on_host(self) -> str | None:
        """The step that needs its images on the host: of another device it would have other bits."""
        kinds = (RandomResizedCrop, RandAugment)
        return next(
            (item.name for item in [*filter(None, [self._crop]), *self._steps] if isinstance(item, kinds)), None
        )

    @property
    def draws_globally(self) -> bool:
        """Whether a step draws from the global generators, which no other thread may do meanwhile."""
        return any(isinstance(item, RandAugment) for item in self._steps)

    def __call__(self, images: Tensor, epoch: int, indices: np.ndarray, rows: np.ndarray | None = None) -> Tensor:
        """Images [m, C, H, W] of any dtype to the same shape and dtype; `indices` is int64 [m].

        Args:
            rows: where `images` are all of a data set, the place of each of the m in there, int64.
        """
        windows: Windows | None = None
        for item in self._steps:
            check_images(images, item.name)
            if isinstance(item, RandomCrop):
                down, right = _places(item, self._seed, epoch, indices).T - item.padding
                windows = (windows or Windows.whole(len(indices))).moved(down, right)
            elif isinstance(item, HorizontalFlip):
                chosen = _flipped(item, self._seed, epoch, indices)
                windows = (windows or Windows.whole(len(indices))).flipped(chosen)
            else:
                images, windows, rows = cut(images, rows, windows), None, None
                if isinstance(item, ColorJitter):
                    images = color_jitter(item, images, self._seed, epoch, indices)
                else:
                    images = rand_augment(item, images, self._seed, epoch, indices)
        return cut(images, rows, windows)


_ADVICE = (
    "return them as torchvision.tv_tensors (Mask, BoundingBoxes, Image), which crops and flips move too, or do it in "
    "the data set, for both, and take it out of augment"
)


def _tv_tensors() -> Any:
    """The module, where a data set has imported it; else no target is any of it."""
    return sys.modules.get("torchvision.tv_tensors")


def lies_in_image(part: Any) -> bool:
    """Whether a part of a target is one of torchvision's tv_tensors."""
    tv_tensors = _tv_tensors()
    return tv_tensors is not None and isinstance(part, tv_tensors.TVTensor)


def _place_in_image(targets: Any) -> list[int] | None:
    """The shape of a sample's target, or of the first part of one, that has two dimensions or more."""
    if isinstance(targets, Tensor | np.ndarray):
        return list(targets.shape[1:]) if targets.ndim > 2 else None
    parts = targets.values() if isinstance(targets, Mapping) else targets if isinstance(targets, list | tuple) else ()
    return next((shape for shape in map(_place_in_image, parts) if shape is not None), None)


def check_images(images: Any, name: str) -> None:
    """Raises UserError unless `images` is [m, C, H, W]; a user's data set may return anything."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = tuple(images.shape[1:]) if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"augment: {name} works on images [channels, height, width], and the data set gives {given}")


def _places(item: RandomCrop, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """int64 [m, 2]: top and left in the padded image."""
    return (uniform(seed, "random_crop", epoch, indices, draws=2) * (2 * item.padding + 1)).astype(np.int64)


def _flipped(item: HorizontalFlip, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """bool [m]: those that are."""
    chosen: np.ndarray = uniform(seed, "horizontal_flip", 0 if item.alternate else epoch, indices)[:, 0] < item.p
    return chosen ^ (item.alternate and epoch % 2 == 1)


def rand_augment(item: RandAugment, images: Tensor, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """torchvision's RandAugment, image by image: given a batch it would draw once for all of it."""
    from torchvision.transforms.v2 import RandAugment as Transform

    transform = Transform(num_ops=item.num_ops, magnitude=item.magnitude)
    out = torch.empty_like(images)
    with seeded(0):
        for row, index in enumerate(indices.tolist()):
            seed_all(key(seed, "rand_augment", epoch, index))
            out[row] = transform(images[row])
    return out


_STEPS = (RandomCrop, HorizontalFlip, ColorJitter, RandAugment)


def resized_crop(item: RandomResizedCrop, seed: int, epoch: int, indices: np.ndarray) -> Crop:
    """A function that crops row k of the samples `indices` and resizes it; the box depends on the image's own size."""
    draws = _crop_draws(seed, epoch, indices)

    def crop(row: int, image: Tensor, height: int, width: int) -> Tensor:
        top, left, rows, columns = crop_box(item, image.shape[-2], image.shape[-1], draws[row])
        return resize(image[..., top : top + rows, left : left + columns], height, width)

    return crop


def _crop_draws(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    return uniform(seed, "random_resized_crop", epoch, indices, draws=2 * _ATTEMPTS + 2)


def crop_box(item: RandomResizedCrop, height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a part of random area and shape (Szegedy et al., 2014, section 6).

    Drawn as torchvision does: the area and the logarithm of the ratio are uniform. After ten boxes that do not fit, it
    is the largest part in the middle with an allowed ratio. `draws` are 22 numbers in [0, 1).
    """
    smallest, largest = sorted(item.scale)
    narrow, wide = sorted(item.ratio)
    for area_draw, ratio_draw in draws[:-2].reshape(_ATTEMPTS, 2).tolist():
        area = height * width * (smallest + (largest - smallest) * area_draw)
        ratio = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * ratio_draw)
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = int(draws[-2] * (height - rows + 1)), int(draws[-1] * (width - columns + 1))
            return top, left, rows, columns
    return _middle(height, width, narrow, wide)


def _middle(height: int, width: int, narrow: float, wide: float) -> tuple[int, int, int, int]:
    rows, columns = height, width
    if width / height < narrow:
        rows = max(1, min(height, round(width / narrow)))
    elif width / height > wide:
        columns = max(1, min(width, round(height * wide)))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
