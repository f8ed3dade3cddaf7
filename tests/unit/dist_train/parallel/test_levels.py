"""What the levels of an exchange know of the tree, for numbers of ranks that no test can start."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.config.shares import share
from dist_train.parallel.exchange import Exchange, Lanes, level_sizes
from dist_train.parallel.tree import children, cover, tree_sum


def _places(nodes):
    return [(place, here) for here in nodes for place in range(here)]


def _sum_of_siblings(left, right):
    """A node, which nothing but its two children makes."""
    node = (left[0], right[1])
    assert children(node) == (left, right)
    return node


def _follow(rank, sizes, microbatches):
    """Goes through a rank's levels: each begins with what the one before has added up, and the last has the root."""
    world_size, root = math.prod(sizes), (0, microbatches)
    shares = [share(one, world_size, microbatches) for one in range(world_size)]
    lanes = Lanes(groups=(None,) * len(sizes), sizes=sizes)
    mine, block = cover(shares[rank], root), 1
    for level, size in zip(Exchange(lanes, rank, shares, microbatches)._levels, sizes, strict=True):
        assert level.brought[rank // block % size] == mine and level.members == size
        known = {node: node for brought in level.brought for node in brought}
        mine, block = [tree_sum(known, node, _sum_of_siblings) for node in level.wanted], block * size
        assert mine == level.wanted
    assert mine == [root]


@given(st.lists(st.integers(1, 8), min_size=1, max_size=20), st.data())
def test_any_nodes_and_any_microbatches_end_at_the_root(nodes, data):
    sizes = level_sizes(_places(nodes))
    world_size = sum(nodes)
    assert math.prod(sizes) == world_size
    microbatches = data.draw(st.integers(world_size, 4 * world_size))
    _follow(data.draw(st.integers(0, world_size - 1)), sizes, microbatches)


@pytest.mark.parametrize("nodes", [3, 64, 512, 1250, 1249])
@pytest.mark.parametrize("more", [0, 1777])
def test_thousands_of_ranks_end_at_the_root(nodes, more):
    sizes = level_sizes(_places([8] * nodes))
    for rank in (0, 1, 8 * nodes // 3, 8 * nodes - 1):
        _follow(rank, sizes, 8 * nodes + more)
