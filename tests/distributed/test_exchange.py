"""The sum over ranks: the same bits in one level or two, in one piece or several, by either way of handing it on."""

import os

import pytest
import torch
import torch.distributed as dist

from dist_train.config.schema import DistributedConfig
from dist_train.config.shares import share
from dist_train.parallel.exchange import Exchange, Lanes, regular
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.parallel.tree import cover, tree_sum
from tests.distributed.training import result, train, write_configs

NUMBERS = 1003
PLAIN = {"dtype": torch.float32}
LAYOUTS = {
    4: [(1, 8, PLAIN), (4, 8, PLAIN), (2, 4, PLAIN), (2, 7, PLAIN), (2, 8, PLAIN)],
    6: [(3, 6, PLAIN), (3, 11, PLAIN), (2, 6, PLAIN), (2, 13, PLAIN)],
}
"""By number of ranks: how many a node has, the microbatches, what else. 2 x 2, 2 x 3 and 3 x 2, uneven shares too."""
LAYOUTS[4] += [
    (per_node, 7, {"dtype": torch.float32, **options})
    for per_node in (2, 4)
    for options in ({"piece": 300}, {"piece": 1000}, {"all_gather": True})  # the last is the way of a GPU
]
LAYOUTS[4] += [(2, 6, {"dtype": dtype}) for dtype in (torch.bfloat16, torch.float64)]


def _on_nodes(ranks, per_node):
    """As if every `per_node` ranks had a machine of their own."""
    os.environ |= {"LOCAL_RANK": str(ranks.rank % per_node), "LOCAL_WORLD_SIZE": str(per_node)}
    os.environ |= {"GROUP_RANK": str(ranks.rank // per_node)}
    return Ranks.from_environment()


def _leaves(microbatches, dtype=torch.float32):
    """Numbers of very different sizes, whose sum depends on the order."""
    draw = torch.Generator().manual_seed(microbatches)
    values = torch.randn(microbatches, NUMBERS, generator=draw) * 10 ** torch.randn(
        microbatches, NUMBERS, generator=draw
    )
    return {(number, number + 1): value.to(dtype) for number, value in enumerate(values)}


def _alone(microbatches, dtype=torch.float32):
    return tree_sum(_leaves(microbatches, dtype), (0, microbatches), torch.add).div(microbatches)


def _own_nodes(mine, microbatches, dtype):
    leaves = _leaves(microbatches, dtype)
    return [tree_sum(leaves, node, torch.add) for node in cover(mine, (0, microbatches))]


def _sums(ranks, layouts):
    """Whether each sum, and the same again in memory that was used, has the bits of `_alone`."""
    with ProcessGroup(ranks, DistributedConfig()) as group:
        return [_is_right(group, _on_nodes(ranks, per_node), *more) for per_node, *more in layouts]


def _is_right(group, ranks, microbatches, options):
    group.ranks = ranks
    options = dict(options)
    dtype = options.pop("dtype")
    shares = [share(rank, ranks.world_size, microbatches) for rank in range(ranks.world_size)]
    exchange = Exchange(group.for_reduction(), ranks.rank, shares, microbatches, **options)
    expected, found = _alone(microbatches, dtype), []
    for _ in range(2):
        values = _own_nodes(shares[ranks.rank], microbatches, dtype)
        exchange.mean_into(values[-1], values)
        found.append(torch.equal(values[-1].view(torch.uint8), expected.view(torch.uint8)))
    return all(found)


@pytest.mark.parametrize("world_size", [*LAYOUTS])
def test_any_layout_any_pieces_and_any_type_give_the_bits_of_one_rank(run_ranks, world_size):
    layouts = LAYOUTS[world_size]
    for of_rank in run_ranks(_sums, world_size, layouts):
        assert [layout for layout, right in zip(layouts, of_rank, strict=True) if not right] == []


# ---------------------------------------------------------------- what travels, and where it lies


def _watched(ranks, per_node, two_levels, numbers):
    """Bytes that this rank sent to other nodes in one sum, whether all that it sent and received began at multiples of
    16 bytes, and the most numbers in one tensor of it."""
    ranks, microbatches = _on_nodes(ranks, per_node), ranks.world_size
    shares = [share(rank, ranks.world_size, microbatches) for rank in range(ranks.world_size)]
    calls, plain = [], dist.all_to_all_single

    def noting(out, given, out_sizes=None, sizes=None, group=None):
        calls.append((out, given, out_sizes, sizes, dist.get_process_group_ranks(group)))
        return plain(out, given, out_sizes, sizes, group=group)

    with ProcessGroup(ranks, DistributedConfig()) as group:
        lanes = group.for_reduction() if two_levels else Lanes(inside=dist.new_group(), per_node=ranks.world_size)
        exchange = Exchange(lanes, ranks.rank, shares, microbatches, piece=1 << 16)
        value = torch.zeros(numbers)
        dist.all_to_all_single = noting
        exchange.mean_into(value, [value])
        dist.all_to_all_single = plain
    sent, aligned, most = 0, True, 0
    for out, given, out_sizes, sizes, members in calls:
        parts = given.split(sizes or given.numel() // len(members))
        sent += sum(part.nbytes for peer, part in zip(members, parts, strict=True) if peer // per_node != ranks.node)
        for whole, cut in ((given, parts), (out, out.split(out_sizes or out.numel() // len(members)))):
            aligned &= all((part.data_ptr() - whole.data_ptr()) % 16 == 0 for part in cut)
        most = max(most, out.numel(), given.numel())
    return sent, aligned, most


@pytest.mark.parametrize(("world_size", "per_node"), [(4, 2), (6, 3), (8, 2)])
def test_between_nodes_every_number_travels_as_in_a_ring(run_ranks, world_size, per_node):
    """Out of each node: those of the sum's chunks that other nodes add, and those that it has added itself."""
    numbers = 24 * 400
    of_node = {
        two_levels: sum(
            sent for sent, _, _ in run_ranks(_watched, world_size, per_node, two_levels, numbers)[:per_node]
        )
        for two_levels in (True, False)
    }
    nodes = world_size // per_node
    assert of_node[True] == 2 * 4 * numbers * (nodes - 1) / nodes
    assert of_node[False] == per_node * of_node[True]


def test_chunks_are_aligned_and_pieces_bounded(run_ranks):
    for _, aligned, most in run_ranks(_watched, 4, 2, True, 300_001):
        assert aligned and most <= (1 << 16) // 4


# ---------------------------------------------------------------- which nodes are alike


def test_two_levels_need_several_nodes_of_as_many_ranks():
    def places(*nodes):
        return [(place, here) for here in nodes for place in range(here)]

    assert regular(places(2, 2)) == 2 and regular(places(8, 8, 8)) == 8
    assert [regular(places(*nodes)) for nodes in ((4,), (1, 1, 1), (3, 2), (2, 3), (1, 2, 2))] == [None] * 5
    assert regular([(0, 2), (0, 2), (1, 2), (1, 2)]) is None  # ranks that are dealt out in turn


def _train_on_nodes(ranks, per_node, *arguments):
    return train(_on_nodes(ranks, per_node), *arguments)


def _three_and_one(ranks, *arguments):
    first = ranks.rank < 3
    os.environ |= {"LOCAL_RANK": str(ranks.rank % 3), "LOCAL_WORLD_SIZE": "3" if first else "1"}
    os.environ["GROUP_RANK"] = "0" if first else "1"
    return train(ranks, *arguments)


def test_whole_trainings_on_nodes_of_any_kind_end_in_the_same_bits(run_ranks, tmp_path):
    write_configs(tmp_path)
    more = ["batch.microbatches=7", "batch.global_size=56", "train.duration=3 steps", "eval.every=3 steps"]
    run_ranks(train, 1, tmp_path, "base.yaml", "alone", *more)
    run_ranks(_train_on_nodes, 4, 2, tmp_path, "base.yaml", "two and two", *more)
    run_ranks(_three_and_one, 4, tmp_path, "base.yaml", "three and one", *more)
    expected = result(tmp_path / "alone")
    assert result(tmp_path / "two and two") == expected == result(tmp_path / "three and one")
