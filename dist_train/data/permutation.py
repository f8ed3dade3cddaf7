"""A shuffled order that is computed, not stored: any position of any epoch at once, however large the data set is."""

from math import isqrt
from typing import overload

import numpy as np

from dist_train.randomness import mix

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15


class Permutation:
    """A keyed bijection of range(size), in O(1) memory and with O(1) seek.

    A Feistel network over the smallest near-square grid of rows × columns that holds `size` numbers, its halves added
    modulo rows and columns, with cycle walking for the few places that are no number (Black and Rogaway, 2002, "Ciphers
    with Arbitrary Finite Domains", methods 2 and 3). Four rounds make a pseudo-random permutation of large domains
    (Luby and Rackoff, 1988); twice as many also mix small ones. The round function is SplitMix64's output function:
    this is for shuffling, not for secrets.
    """

    def __init__(self, size: int, key: int) -> None:
        if not 0 < size <= 2**62:
            raise ValueError(f"a permutation has 1 to 2**62 numbers, not {size}")
        self.size = size
        self._rows = np.uint64(isqrt(size - 1) + 1)
        self._columns = np.uint64(-(-size // int(self._rows)))
        counter = np.arange(1, _ROUNDS + 1, dtype=np.uint64)
        self._round_keys = mix(np.uint64(key) ^ mix(counter * np.uint64(_GOLDEN)))

    @overload
    def __call__(self, positions: int) -> int: ...

    @overload
    def __call__(self, positions: np.ndarray) -> np.ndarray: ...

    def __call__(self, positions: int | np.ndarray) -> int | np.ndarray:
        """The numbers at `positions` of the order: int64 of the same shape, or an int for an int.

        Raises:
            IndexError: when a position is outside range(size).
        """
        asked = np.asarray(positions, dtype=np.int64)
        if asked.size and (asked.min() < 0 or asked.max() >= self.size):
            raise IndexError(f"positions go from 0 to {self.size - 1}")
        numbers = self._network(asked.ravel().view(np.uint64))
        outside = np.flatnonzero(numbers >= self.size)
        while outside.size:
            walked = self._network(numbers[outside])
            numbers[outside] = walked
            outside = outside[walked >= self.size]
        shaped = numbers.view(np.int64).reshape(asked.shape)
        return shaped if isinstance(positions, np.ndarray) else int(shaped)

    def _network(self, numbers: np.ndarray) -> np.ndarray:
        """One pass, a bijection of range(rows × columns); uint64 [n] to uint64 [n]."""
        left, right = np.divmod(numbers, self._columns)
        for left_key, right_key in zip(self._round_keys[0::2], self._round_keys[1::2], strict=True):
            left = _add(left, _below(self._rows, right ^ left_key), self._rows)
            right = _add(right, _below(self._columns, left ^ right_key), self._columns)
        return left * self._columns + right


def _below(limit: np.uint64, values: np.ndarray) -> np.ndarray:
    """Pseudo-random numbers in [0, limit), by the high half of a product instead of a slow division (limit < 2**32)."""
    return ((mix(values) >> np.uint64(32)) * limit) >> np.uint64(32)


def _add(left: np.ndarray, right: np.ndarray, modulus: np.uint64) -> np.ndarray:
    total = left + right
    return np.where(total >= modulus, total - modulus, total)
