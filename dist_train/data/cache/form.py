"""What is kept of a decoded image, and what the model gets of that."""

from dataclasses import dataclass

from torch import Tensor

from dist_train.data.cache.files import slot_of
from dist_train.data.resize import centre_crop, resize, resize_shorter_side

_ASPECT = 2.5
"""Largest ratio of the sides of an image that fits in its slot, where its size is its own."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is kept of an image: the square that the model gets, or with `side` the whole, its shorter side as long.

    An image is never enlarged for that: one that has fewer pixels is kept as it is.
    """

    size: int = 0
    resize: int = 0
    side: int = 0

    @property
    def name(self) -> str:
        return f"side-{self.side}" if self.side else f"square-{self.size}-{self.resize}"

    @property
    def slot(self) -> int:
        return slot_of(self.side, int(_ASPECT * self.side)) if self.side else slot_of(self.size, self.size)

    @property
    def usual(self) -> int:
        """Bytes of an image of usual sides, 4 : 3, on disk."""
        return slot_of(self.side, self.side * 4 // 3) if self.side else self.slot

    def kept(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w], of any size, to what is kept of it."""
        height, width = image.shape[1:]
        if not self.side:
            return image if height * width < self.size**2 else fitted(image, self.size, self.resize)
        shorter = min(height, width)
        if shorter <= self.side:
            return image
        return resize(image, height * self.side // shorter, width * self.side // shorter)

    def used(self, image: Tensor) -> Tensor:
        """From what is kept to what the model gets, or what random_resized_crop cuts from."""
        return (
            image if self.side or image.shape[1:] == (self.size, self.size) else fitted(image, self.size, self.resize)
        )


def fitted(image: Tensor, size: int, resize: int) -> Tensor:
    """uint8 [3, h, w] to uint8 [3, size, size]: the middle of the image, its shorter side `resize` pixels long."""
    if image.shape[1:] == (size, size) and resize == size:
        return image
    return centre_crop(resize_shorter_side(image, resize), size)
