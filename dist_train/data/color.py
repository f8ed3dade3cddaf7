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
_CONTRAST, _SATURATION = 1, 2
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
    shares = sent(_shares(item, images.shape[1], seed, epoch, indices), images.device)[..., None, None, None]
    size = max(1, _BLOCK // images[0].numel()) if images.device.type == "cpu" else len(images)
    out = torch.empty_like(images)
    for part, into, share in zip(images.split(size), out.split(size), shares.split(size, dim=2), strict=True):
        pixels = part.to(torch.float32)
        for own, of_pixel, of_image in share:
            grey = _grey(pixels)
            mean = (grey.sum((1, 2, 3), keepdim=True, dtype=torch.float64) / grey[0].numel()).to(torch.float32)
            pixels = pixels.mul_(own).add_(grey.mul_(of_pixel).add_(mean.mul_(of_image))).clamp_(0, 255).trunc_()
        into.copy_(pixels)
    return out


def _shares(item: ColorJitter, channels: int, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Float32 [changes, 3, m]: what each change in turn makes an image of: of itself, of the grey of each pixel, and of
    the grey of the whole image."""
    amounts = np.array([item.brightness, item.contrast, item.saturation if channels == 3 else 0.0])
    active = np.flatnonzero(amounts)
    draws = uniform(seed, "color_jitter", epoch, indices, draws=6)
    lowest = np.maximum(0.0, 1 - amounts)
    factors = lowest + (1 + amounts - lowest) * draws[:, :3]
    change = active[np.argsort(draws[:, 3:][:, active], axis=1, kind="stable")]  # [m, changes]
    own = np.take_along_axis(factors, change, axis=1)
    parts = [own, (1 - own) * (change == _SATURATION), (1 - own) * (change == _CONTRAST)]
    return np.stack(parts).transpose(2, 0, 1).astype(np.float32)


def _grey(pixels: Tensor) -> Tensor:
    """Whole numbers, float32 [m, 1, H, W]."""
    if pixels.shape[1] == 1:
        return pixels.clone()
    red, green, blue = (pixels[:, k : k + 1] * share for k, share in enumerate(_GREY))
    return red.add_(green).add_(blue).floor_()
