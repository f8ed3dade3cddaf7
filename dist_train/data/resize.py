"""Changing the size of images, as torchvision.transforms.v2 does it, without importing torchvision."""

from torch import Tensor
from torch.nn.functional import interpolate


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing: uint8 or float [C, h, w] to the same dtype [C, height, width]."""
    if image.shape[-2:] == (height, width):
        return image
    return interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def resize_shorter_side(image: Tensor, size: int) -> Tensor:
    """The shorter side becomes `size` pixels, and the other follows, rounded down."""
    height, width = image.shape[-2:]
    if height <= width:
        return resize(image, size, size * width // height)
    return resize(image, size * height // width, size)


def centre_crop(image: Tensor, size: int) -> Tensor:
    """The middle size × size pixels of an image that has at least so many."""
    if image.shape[-2:] == (size, size):
        return image
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]
