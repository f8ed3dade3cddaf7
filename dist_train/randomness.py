"""Every random draw, keyed by (seed, purpose, position): no generator state to save, and none to drift."""

import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for the draw `purpose` at `position`, the same in every process and on every machine."""
    text = ":".join([str(seed), purpose, *(str(int(p)) for p in position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood, 2014, figure 17) on uint64 of any shape."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform(seed: int, purpose: str, *positions: int | np.ndarray, draws: int = 1) -> np.ndarray:
    """Float64 numbers in [0, 1) of shape broadcast(positions) + (draws,), each a function of its own position alone.

    The position's coordinates are absorbed one by one with SplitMix64's output function, so a number does not depend
    on which others are drawn in the same call.
    """
    coordinates = [np.asarray(p, dtype=np.int64).view(np.uint64) for p in positions]
    shape = np.broadcast_shapes(*(c.shape for c in coordinates)) if coordinates else ()
    state = np.full(shape, key(seed, purpose), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for coordinate in coordinates:
            state = mix((state ^ mix(coordinate + _GOLDEN)) + _GOLDEN)
        counter = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
        bits = mix(state[..., None] + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from `value` inside the block and are restored after it.

    For code that draws from the global generators and cannot be given one, such as a user's dataset.
    """
    import torch

    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed_all(value)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def seed_all(value: int) -> None:
    """Starts Python's, NumPy's and torch's CPU generator from `value`; inside `seeded`, which restores them."""
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    sys.modules["torch"].default_generator.manual_seed(value)


class Generators:
    """Every generator that a training may draw from: the global ones, and those that the model's modules, the task and
    the optimizer have as attributes.

    Args:
        others: task and optimizer, where they take part.
    """

    def __init__(self, model: Any, *others: Any) -> None:
        torch = sys.modules["torch"]
        kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
        found = {
            id(value): value
            for owner in (*model.modules(), *others)
            for value in vars(owner).values()
            if isinstance(value, kinds)
        }
        self._own = list(found.values())

    def seed(self, value: int) -> None:
        """Starts them all from `value`: Python's, NumPy's, torch's of the CPU, the current CUDA device's where CUDA is
        in use; and each of their own from a number that follows from `value` and its place."""
        torch = sys.modules["torch"]
        seed_all(value)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(value)
        for place, generator in enumerate(self._own):
            _seed(generator, key(value, "own generator", place))


def _seed(generator: Any, value: int) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(value).state
    elif isinstance(generator, sys.modules["torch"].Generator):
        generator.manual_seed(value)
    else:
        generator.seed(value & 0xFFFFFFFF)
