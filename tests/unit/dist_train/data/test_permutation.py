"""The order is a bijection, mixes well, differs by key, and costs the same wherever one begins."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.permutation import Permutation
from dist_train.randomness import key


def test_a_bijection_for_every_small_size():
    for size in range(1, 2001):
        order = Permutation(size, key(3, "order", size))(np.arange(size))
        assert np.array_equal(np.sort(order), np.arange(size)), size


@pytest.mark.parametrize("size", [1_000_003, 999_999, 1 << 20])
def test_a_bijection_for_large_sizes(size):
    order = Permutation(size, key(1, "order", 0))(np.arange(size))
    assert order.min() == 0 and order.max() == size - 1
    assert (np.bincount(order, minlength=size) == 1).all()


@settings(max_examples=50, deadline=None)
@given(size=st.integers(10**6, 2**62), value=st.integers(0, 2**63 - 1), start=st.floats(0, 1))
def test_injective_and_in_range_anywhere_in_a_huge_order(size, value, start):
    first = min(int(start * size), size - 10_000)
    order = Permutation(size, value)(np.arange(first, first + 10_000))
    assert len(np.unique(order)) == 10_000
    assert order.min() >= 0 and order.max() < size


def test_one_position_is_what_many_are():
    permutation = Permutation(1009, 7)
    order = permutation(np.arange(1009))
    assert [permutation(position) for position in range(0, 1009, 100)] == order[::100].tolist()
    assert isinstance(permutation(5), int)
    assert np.array_equal(permutation(np.arange(6).reshape(2, 3)), order[:6].reshape(2, 3))


def test_outside_the_range_is_refused():
    for position in (-1, 10):
        with pytest.raises(IndexError):
            Permutation(10, 0)(position)
    with pytest.raises(ValueError):
        Permutation(0, 0)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 10, 16, 31])
def test_every_number_is_as_likely_at_every_position(size):
    keys = 4000
    counts = np.zeros((size, size))
    for number in range(keys):
        counts[np.arange(size), Permutation(size, key(5, "order", number))(np.arange(size))] += 1
    assert _chi_squared_z(counts, keys / size, (size - 1) ** 2) < 5


def test_neighbours_in_the_order_are_no_neighbours_in_the_data():
    size = 100_000
    order = Permutation(size, key(0, "order", 0))(np.arange(size))
    # A uniform shuffle moves a sample by size / 3 on average, its standard error is about 0.24 size / sqrt(size).
    displacement = np.abs(order - np.arange(size)).mean() / size
    assert abs(displacement - 1 / 3) < 5 * 0.24 / math.sqrt(size)
    steps = np.abs(np.diff(order)).mean() / size
    assert abs(steps - 1 / 3) < 5 * 0.3 / math.sqrt(size)
    assert np.count_nonzero(order == np.arange(size)) < 10  # one fixed point is expected
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / math.sqrt(size)
    blocks = np.histogram2d(np.arange(size), order, bins=20)[0]
    assert _chi_squared_z(blocks, size / 400, 19**2) < 5


def test_keys_give_unrelated_orders():
    size = 10_000
    orders = [Permutation(size, key(0, "order", epoch))(np.arange(size)) for epoch in range(20)]
    for left, right in zip(orders, orders[1:], strict=False):
        assert np.count_nonzero(left == right) < 12  # one is expected
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / math.sqrt(size)


def test_the_first_number_of_a_billion_costs_what_that_of_a_hundred_does():
    Permutation(10, 0)(0)  # NumPy's own first call
    fastest = {100: math.inf, 10**9: math.inf}
    tracemalloc.start()
    for number in range(100):
        for size in fastest:
            begun = time.perf_counter()
            Permutation(size, number)(size - 1)
            fastest[size] = min(fastest[size], time.perf_counter() - begun)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fastest[10**9] < 10 * fastest[100]
    assert peak < 1e6


def _chi_squared_z(counts: np.ndarray, expected: float, freedom: int) -> float:
    """How many standard deviations chi squared is above its mean."""
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)
