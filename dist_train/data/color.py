"""Brightness, contrast and saturation, changed at random: the arithmetic of torchvision's ColorJitter on a whole batch.

An image's result depends on it alone, to the bit. Multiplications and additions are operations of their own, since a
kernel that fuses them rounds otherwise in its vectors than in what is left over at a tensor's end. The only sum, that
of an image's grey, is one of whole numbers in float64, which is exact in any order.
"""

import numpy as np
import torch
from torch import Tensor

from dist_train.config.schema import ColorJitter
from dist_train.data.windows import sent
from dist_train.errors import UserError
from dist_train.randomness import uniform

_BLOCK = 1 << 17
"""Numbers that are worked on together on a CPU: half a megabyte of floats stays in the cache of a core."""
_LARGE = 1 << 14
"""Numbers of an image from which on the calls for it alone cost less than what the others need."""
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)
_GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue (ITU-R BT.601), as torchvision has them."""


def color_jitter(item: ColorJitter, images: Tensor, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """uint8 [m, 1 or 3, H, W] to the same. The order of the changes is drawn for each image, as torchvision does.

    Raises:
        UserError: for other images.
    """
    if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise UserError(
            f"augment: color_jitter works on uint8 images of 1 or 3 channels, and the data set gives {images.dtype} of "
            f"{images.shape[1]}"
        )
    change, shares = _drawn(item, images.shape[1], seed, epoch, indices)
    there = sent(shares, images.device)[..., None, None, None]
    out, size = torch.empty_like(images), _together(images)
    for begin in range(0, len(images), size):
        rows = slice(begin, begin + size)
        pixels = images[rows].to(torch.float32)
        for kinds, (own, of_pixel, of_image) in zip(change[rows].T, there[:, :, rows], strict=True):
            added: Tensor | float = 0.0
            if (kinds != _BRIGHTNESS).any():  # what an image has no share of is left out, where no other has one
                grey = _grey(pixels)
                # Each row in float32, which holds it to the last bit below 65,794 pixels.
                total = grey.sum(-1, keepdim=True).sum((1, 2), keepdim=True, dtype=torch.float64)
                mean = (total / grey[0].numel()).to(torch.float32).mul_(of_image)
                added = grey.mul_(of_pixel).add_(mean) if (kinds == _SATURATION).any() else mean
            pixels = pixels.mul_(own).add_(added).clamp_(0, 255).floor_()  # torch's trunc_ takes 15 times as long
        out[rows] = pixels.to(torch.int16)  # from floats to bytes in one takes four times as long
    return out


def _together(images: Tensor) -> int:
    """How many images are worked on at once: on a CPU what stays in the cache of a core, large ones alone."""
    size = images[0].numel()
    if images.device.type != "cpu":
        return max(1, len(images))
    return 1 if size >= _LARGE else _BLOCK // size


def _drawn(
    item: ColorJitter, channels: int, seed: int, epoch: int, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The changes of each image in their order, int64 [m, changes]; and float32 [changes, 3, m], what each change makes
    an image of: of itself, of the grey of each pixel, and of the grey of the whole image."""
    amounts = np.array([item.brightness, item.contrast, item.saturation if channels == 3 else 0.0])
    active = np.flatnonzero(amounts)
    draws = uniform(seed, "color_jitter", epoch, indices, draws=6)
    lowest = np.maximum(0.0, 1 - amounts)
    factors = lowest + (1 + amounts - lowest) * draws[:, :3]
    change = active[np.argsort(draws[:, 3:][:, active], axis=1, kind="stable")]
    own = np.take_along_axis(factors, change, axis=1)
    parts = [own, (1 - own) * (change == _SATURATION), (1 - own) * (change == _CONTRAST)]
    return change, np.stack(parts).transpose(2, 0, 1).astype(np.float32)


def _grey(pixels: Tensor) -> Tensor:
    """Whole numbers, float32 [m, 1, H, W]."""
    if pixels.shape[1] == 1:
        return pixels.clone()
    red, green, blue = (pixels[:, k : k + 1] * share for k, share in enumerate(_GREY))
    return red.add_(green).add_(blue).floor_()
