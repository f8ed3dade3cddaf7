"""Changing the size of images, as torchvision.transforms.v2 does it, without importing torchvision."""

from torch import Tensor
from torch.nn.functional import interpolate

LONGEST = 16
"""The largest ratio of a picture's longer side to its shorter one when it is resized."""


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing: uint8 or float [C, h, w] to the same dtype [C, height, width]."""
    if image.shape[-2:] == (height, width):
        return image
    return interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def resize_shorter_side(image: Tensor, size: int) -> Tensor:
    """The shorter side becomes `size` pixels, and the other follows, rounded down.

    If the longer side is more than 16 times the shorter one, only the middle is kept: a line of 20,000 pixels, resized
    whole, would take gigabytes, and the square that is wanted is cut from the middle anyway.
    """
    height, width = image.shape[-2:]
    longest = LONGEST * min(height, width)
    height, width = min(height, longest), min(width, longest)
    if (height, width) != image.shape[-2:]:
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        image = image[..., top : top + height, left : left + width]
    if height <= width:
        return resize(image, size, size * width // height)
    return resize(image, size * height // width, size)


def centre_crop(image: Tensor, size: int) -> Tensor:
    """The middle size × size pixels of an image that has at least that many."""
    if image.shape[-2:] == (size, size):
        return image
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]
