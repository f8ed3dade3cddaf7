"""The tree that all sums follow."""

from hypothesis import given
from hypothesis import strategies as st

from dist_train.config.shares import share
from dist_train.parallel.tree import BinaryCounter, cover, tree_sum

SIZES = st.integers(1, 40)


def _shape(left, right):
    return (left, right)


@st.composite
def shared_out(draw):
    microbatches = draw(SIZES)
    world_size = draw(st.integers(1, microbatches))
    return microbatches, [share(rank, world_size, microbatches) for rank in range(world_size)]


@given(shared_out())
def test_shares_are_contiguous_complete_and_even(case):
    microbatches, shares = case
    assert [number for own in shares for number in own] == list(range(microbatches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(shared_out())
def test_the_order_of_additions_does_not_depend_on_the_shares(case):
    microbatches, shares = case
    root = (0, microbatches)
    alone = tree_sum({(v, v + 1): v for v in range(microbatches)}, root, _shape)
    values = {}
    for own in shares:
        counter = BinaryCounter(microbatches, _shape)
        for number in own:
            counter.push(number, number)
        values |= counter.nodes
    assert tree_sum(values, root, _shape) == alone


@given(shared_out())
def test_a_rank_ends_with_the_largest_nodes_inside_its_share(case):
    microbatches, shares = case
    for own in shares:
        counter = BinaryCounter(microbatches, _shape)
        for number in own:
            counter.push(number, number)
        assert sorted(counter.nodes) == cover(own, (0, microbatches))


@given(shared_out())
def test_the_last_leaf_folds_into_the_share_s_last_node(case):
    microbatches, shares = case
    for own in shares:
        counter = BinaryCounter(microbatches, lambda left, right: left)
        for number in own[:-1]:
            counter.push(number, None)
        folded, beside = counter.folding(own[-1])
        begin = min([node[0] for node in folded], default=own[-1])
        assert [*beside, (begin, own.stop)] == cover(own, (0, microbatches))


def test_few_partial_sums_are_kept():
    counter, most = BinaryCounter(1024, lambda left, right: left + right), 0
    for number in range(1024):
        counter.push(number, 1)
        most = max(most, len(counter.nodes))
    assert counter.nodes == {(0, 1024): 1024}
    assert most <= 10
