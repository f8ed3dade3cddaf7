"""The sum over ranks: the same bits in one level or two, in one piece or several, by either way of handing it on."""

import itertools
import os

import pytest
import torch
import torch.distributed as dist

from benchmarks.links import bytes_between, connections, sent_by_link
from dist_train.config.schema import DistributedConfig
from dist_train.config.shares import share
from dist_train.parallel import process_group
from dist_train.parallel.exchange import Exchange, level_sizes
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.parallel.tree import cover, tree_sum
from tests.distributed.training import result, train, write_configs

NUMBERS = 1003
SIZES = {2: [(2,)], 3: [(3,)], 4: [(4,), (2, 2)], 6: [(6,), (2, 3), (3, 2)], 8: [(8,), (4, 2), (2, 4), (2, 2, 2)]}
"""By number of ranks the members of a group by level: one level, nodes of several ranks, groups of nodes."""
IN_CHUNKS = {"few": 0}
"""As where there are too many numbers for everybody to get all of them at once."""
FP32, OTHERS = {"dtype": torch.float32}, (torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = {
    world_size: [
        *(
            (sizes, microbatches, {**FP32, **few})
            for sizes in every
            for few in ({}, IN_CHUNKS)
            for microbatches in (world_size, world_size + 1, 3 * world_size - 2)
        ),
        *(
            (sizes, microbatches, {"dtype": dtype, **few})
            for sizes in every
            for microbatches in (world_size, world_size + 3)
            for few in ({}, IN_CHUNKS)
            for dtype in OTHERS
        ),
        *(
            (sizes, 2 * world_size - 1, {**FP32, **IN_CHUNKS, **options})
            for sizes in every
            for options in ({"piece": 300}, {"piece": 1000}, {"all_gather": True})  # the last is the way of a GPU
        ),
    ]
    for world_size, every in SIZES.items()
}
"""Of each: sizes, microbatches (their shares are even or not, and nodes of the tree or not), type and pieces."""


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
        lanes = {sizes: _lanes(group, sizes) for sizes in dict.fromkeys(sizes for sizes, *_ in layouts)}
        return [_is_right(ranks, lanes[sizes], *more) for sizes, *more in layouts]


def _lanes(group, sizes):
    """As if the nodes were such that these levels are chosen."""
    process_group.level_sizes = lambda places: sizes
    return group._lanes_for(str(sizes), "gloo", process_group.HOST_TIMEOUT)


def _is_right(ranks, lanes, microbatches, options):
    options = dict(options)
    dtype, few = options.pop("dtype"), options.pop("few", None)
    shares = [share(rank, ranks.world_size, microbatches) for rank in range(ranks.world_size)]
    exchange = Exchange(lanes, ranks.rank, shares, microbatches, **options)
    expected, found = _alone(microbatches, dtype), []
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("_FEW", "_FEW_OF_TWO") if few is not None else ():
            patch.setattr(f"dist_train.parallel.exchange.{limit}", few)
        for is_apart in (False, True, False):
            values = _own_nodes(shares[ranks.rank], microbatches, dtype)
            target = torch.empty_like(values[-1]) if is_apart else values[-1]
            exchange.mean_into(target, values)
            found.append(torch.equal(target.view(torch.uint8), expected.view(torch.uint8)))
    return all(found)


@pytest.mark.parametrize("world_size", [*LAYOUTS])
def test_any_levels_any_pieces_and_any_type_give_the_bits_of_one_rank(run_ranks, world_size):
    layouts = LAYOUTS[world_size]
    for of_rank in run_ranks(_sums, world_size, layouts):
        assert [layout for layout, right in zip(layouts, of_rank, strict=True) if not right] == []


# ---------------------------------------------------------------- what travels, and where it lies


def _watched(ranks, numbers):
    """Whether all that this rank sent and received began at multiples of 16 bytes, and the most numbers in a tensor."""
    ranks, calls, plain = _on_nodes(ranks, 2), [], dist.all_to_all_single
    shares = [share(rank, ranks.world_size, ranks.world_size) for rank in range(ranks.world_size)]

    def noting(out, given, out_sizes=None, sizes=None, group=None):
        calls.append((out, given, out_sizes, sizes, dist.get_world_size(group)))
        return plain(out, given, out_sizes, sizes, group=group)

    with ProcessGroup(ranks, DistributedConfig()) as group:
        exchange = Exchange(group.for_reduction(), ranks.rank, shares, ranks.world_size, piece=1 << 16)
        value = torch.zeros(numbers)
        dist.all_to_all_single = noting
        exchange.mean_into(value, [value])
        dist.all_to_all_single = plain
    aligned, most = True, 0
    for out, given, out_sizes, sizes, members in calls:
        for whole, cut in ((given, sizes), (out, out_sizes)):
            parts = whole.split(cut or whole.numel() // members)
            aligned &= all((part.data_ptr() - whole.data_ptr()) % 16 == 0 for part in parts)
        most = max(most, out.numel(), given.numel())
    return aligned, most


def test_chunks_are_aligned_and_pieces_bounded(run_ranks):
    for aligned, most in run_ranks(_watched, 4, 300_001):
        assert aligned and most <= (1 << 16) // 4


def _sent(ranks, per_node, numbers):
    """This rank's connections before, between and after three sums of `numbers`: in one level, in those of its place,
    by a ring; and a broadcast."""
    ranks, microbatches = _on_nodes(ranks, per_node), ranks.world_size
    shares = [share(rank, microbatches, microbatches) for rank in range(microbatches)]
    with ProcessGroup(ranks, DistributedConfig()) as group:
        value, chosen = torch.ones(numbers), group.for_reduction()
        group.broadcast_tensors({"first": value[:1]} if ranks.is_first else None)  # which makes its groups
        one_level = _lanes(group, (microbatches,))
        works = [
            lambda: Exchange(one_level, ranks.rank, shares, microbatches).mean_into(value, [value]),
            lambda: Exchange(chosen, ranks.rank, shares, microbatches).mean_into(value, [value]),
            lambda: dist.all_reduce(value),
            lambda: group.broadcast_tensors({"value": value} if ranks.is_first else None),
        ]
        group.barrier()
        seen = [connections()]
        for work in works:
            work()
            group.barrier()
            seen.append(connections())
            group.barrier()
        return seen


@pytest.mark.parametrize(("per_node", "nodes"), [(2, 2), (4, 2), (2, 4)])
def test_between_nodes_as_many_bytes_travel_as_in_a_ring(run_ranks, per_node, nodes):
    """By the kernel's count, over the connections between processes of different nodes."""
    numbers = 16 * 25_000
    of_ranks = run_ranks(_sent, per_node * nodes, per_node, numbers)
    counts = [bytes_between(sent_by_link(held), per_node) for held in zip(*of_ranks, strict=True)]
    one_level, levels, ring, broadcast = (after - before for before, after in itertools.pairwise(counts))
    # A ring's last rank of a node sends all but one of the W chunks, twice.
    assert ring == pytest.approx(nodes * 2 * 4 * numbers * (1 - 1 / (per_node * nodes)), rel=0.02)
    assert levels == pytest.approx(2 * 4 * numbers * (nodes - 1), rel=0.02) and levels < 1.02 * ring
    assert one_level == pytest.approx(per_node * levels, rel=0.02)
    assert broadcast == pytest.approx(4 * numbers * (nodes - 1), rel=0.02)


def _handed_on(ranks, per_node):
    """Whether each rank has rank 0's tensors, and how many collectives it has begun."""
    ranks, draw = _on_nodes(ranks, per_node), torch.Generator().manual_seed(3)
    dtypes = (torch.bool, torch.int64, torch.bfloat16, torch.float32, torch.float64)
    tensors = {
        f"{dtype} {shape}": (torch.rand(shape, generator=draw) * 9).to(dtype)
        for dtype in dtypes
        for shape in ((), (0, 3), (5,), (3, 4))
    }
    with ProcessGroup(ranks, DistributedConfig()) as group:
        found = group.broadcast_tensors(tensors if ranks.is_first else None)
        begun = sum(one._get_sequence_number_for_group() for one in dist.distributed_c10d._world.pg_map)
    return [*found] == [*tensors] and all(torch.equal(found[name], tensors[name]) for name in tensors), begun


@pytest.mark.parametrize("per_node", [1, 2, 3])
def test_every_rank_receives_rank_0s_tensors_and_begins_as_many_collectives(run_ranks, per_node):
    """Whoever has begun the fewest is taken for the one that is waited for."""
    ((right, _),) = set(run_ranks(_handed_on, 6, per_node))
    assert right


# ---------------------------------------------------------------- which levels


def _places(*nodes):
    return [(place, here) for here in nodes for place in range(here)]


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [
        ((1,), (1,)),
        ((4,), (4,)),
        ((2, 2), (2, 2)),
        ((8,) * 32, (8, 32)),
        ((8,) * 64, (8, 8, 8)),
        ((8,) * 1250, (8, 5, 10, 25)),
        ((8, 4, 4), (4, 4)),  # nodes of several sizes: groups that fit into each
        ((3, 2), (5,)),
        ((1, 1, 1), (3,)),
        ((1,) * 400, (20, 20)),
    ],
)
def test_levels_stay_inside_nodes_first_and_are_as_many_as_save_messages(nodes, sizes):
    assert level_sizes(_places(*nodes)) == sizes


def test_ranks_that_are_dealt_out_in_turn_are_one_level():
    assert level_sizes([(0, 2), (0, 2), (1, 2), (1, 2)]) == (4,)


# ---------------------------------------------------------------- whole trainings


def _train_on_nodes(ranks, per_node, *arguments):
    return train(_on_nodes(ranks, per_node), *arguments)


def _three_and_one(ranks, *arguments):
    first = ranks.rank < 3
    os.environ |= {"LOCAL_RANK": str(ranks.rank % 3), "LOCAL_WORLD_SIZE": "3" if first else "1"}
    os.environ["GROUP_RANK"] = "0" if first else "1"
    return train(ranks, *arguments)


def _train_of_many(ranks, *arguments):
    """As where there are more ranks than gloo is to connect all to all."""
    process_group.MANY = 2
    return _train_on_nodes(ranks, 2, *arguments)


def test_whole_trainings_on_nodes_of_any_kind_end_in_the_same_bits(run_ranks, tmp_path):
    write_configs(tmp_path)
    more = ["batch.microbatches=7", "batch.global_size=56", "train.duration=3 steps", "eval.every=3 steps"]
    run_ranks(train, 1, tmp_path, "base.yaml", "alone", *more)
    run_ranks(_train_on_nodes, 4, 2, tmp_path, "base.yaml", "two and two", *more)
    run_ranks(_three_and_one, 4, tmp_path, "base.yaml", "three and one", *more)
    run_ranks(_train_of_many, 4, tmp_path, "base.yaml", "many", *more[:2], *more[2:], "train.stop_after=2 steps")
    run_ranks(_train_of_many, 4, tmp_path, "base.yaml", "many", *more, "--resume", "auto")
    expected = result(tmp_path / "alone")
    assert [result(tmp_path / run) for run in ("two and two", "three and one", "many")] == [expected] * 3
