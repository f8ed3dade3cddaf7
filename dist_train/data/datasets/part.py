"""Which samples of a large set a split has, in O(1) memory."""

from dataclasses import dataclass

import numpy as np

from dist_train.data.permutation import Permutation
from dist_train.errors import DataError
from dist_train.randomness import key


@dataclass(frozen=True, kw_only=True)
class Part:
    """The samples that a seeded order has at the places [first, last); without an order, these themselves."""

    first: int = 0
    last: int
    order: Permutation | None = None

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"samples go from 0 to {len(self) - 1}")
        return index if self.order is None else int(self.order(self.first + index))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Of many at once, int64 [n]."""
        return indices if self.order is None else self.order(self.first + indices)


def whole(size: int) -> Part:
    return Part(last=size)


def split(size: int, fraction: float, seed: int) -> tuple[Part, Part]:
    """What is kept and what is held out, drawn from `seed`; at least one sample each.

    Raises:
        UserError: when there are fewer than two.
    """
    if size < 2:
        raise DataError("one sample cannot be split into training and evaluation: bring more data")
    count, order = min(max(round(size * fraction), 1), size - 1), Permutation(size, key(seed, "split"))
    return Part(first=count, last=size, order=order), Part(last=count, order=order)
