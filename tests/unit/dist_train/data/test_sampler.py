"""Shards are disjoint and complete, do not depend on the number of ranks, and can begin anywhere."""

import time
import tracemalloc

import numpy as np
import pytest
from torch.utils.data import DistributedSampler

from dist_train.data.sampler import ShardedSampler
from dist_train.errors import ExitCode, UserError

SHAPES = [
    # samples, global batch, microbatches, ranks
    (1, 1, 1, 1),
    (10, 4, 2, 2),
    (64, 64, 8, 3),
    (101, 12, 4, 4),
    (1437, 64, 8, 1),
    (1437, 64, 8, 5),
    (1437, 64, 8, 8),
    (2000, 96, 6, 4),
    (20_000, 48, 12, 7),
]


def sampler(samples: int, batch: int, microbatches: int, ranks: int, rank: int, seed: int = 0) -> ShardedSampler:
    return ShardedSampler(
        range(samples), global_batch=batch, microbatches=microbatches, num_replicas=ranks, rank=rank, seed=seed
    )


def all_ranks(samples, batch, microbatches, ranks, seed=0):
    return [sampler(samples, batch, microbatches, ranks, rank, seed) for rank in range(ranks)]


@pytest.mark.parametrize("shape", SHAPES)
def test_shards_of_an_epoch_are_disjoint_and_complete_up_to_the_tail(shape):
    samples, batch = shape[:2]
    shards = all_ranks(*shape)
    seen = [index for shard in shards for index in shard]
    assert all(len(list(shard)) == len(shard) for shard in shards)
    assert len(seen) == len(set(seen)) == samples // batch * batch == shards[0].total_size
    assert set(seen) <= set(range(samples))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_microbatch_is_the_same_for_any_number_of_ranks(shape):
    samples, batch, parts, ranks = shape
    steps = 2 * (samples // batch) + 1  # past the end of an epoch, and of the next
    alone = {(m.step, m.number): m for m in sampler(samples, batch, parts, 1, 0).microbatches(0, steps)}
    together = [m for shard in all_ranks(*shape) for m in shard.microbatches(0, steps)]
    assert len(together) == len(alone) == steps * parts
    for microbatch in together:
        expected = alone[microbatch.step, microbatch.number]
        assert microbatch.epoch == expected.epoch == microbatch.step // (samples // batch)
        assert np.array_equal(microbatch.indices, expected.indices)
        assert len(microbatch.indices) == batch // parts


def test_the_microbatches_of_an_epoch_are_its_iteration():
    shard = sampler(1437, 64, 8, 3, 1)
    shard.set_epoch(2)
    first = 2 * shard.steps_per_epoch
    indices = [m.indices for m in shard.microbatches(first, first + shard.steps_per_epoch)]
    assert np.concatenate(indices).tolist() == list(shard)


def test_epochs_and_seeds_differ():
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 0)):
        shard = sampler(1000, 10, 2, 2, 0, seed)
        shard.set_epoch(epoch)
        orders.append(list(shard))
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert sum(a == b for a, b in zip(order, other, strict=True)) < 15


@pytest.mark.parametrize("first", [0, 1, 21, 22, 23, 44, 50])
def test_beginning_in_the_middle_goes_on_as_if_never_stopped(first):
    shard = sampler(1437, 64, 8, 3, 2)
    whole = [m for m in shard.microbatches(0, 60) if m.step >= first]
    resumed = list(shard.microbatches(first, 60))
    assert [m[:3] for m in whole] == [m[:3] for m in resumed]
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(whole, resumed, strict=True))


def test_fewer_samples_than_a_batch_say_so():
    with pytest.raises(UserError, match="63 samples.*64") as error:
        sampler(63, 64, 8, 2, 0)
    assert error.value.code == ExitCode.DATA


def test_it_is_a_distributed_sampler():
    shard = sampler(100, 10, 5, 2, 1)
    assert isinstance(shard, DistributedSampler)
    assert (shard.num_replicas, shard.rank, len(shard)) == (2, 1, 10 * 3 * 2)


def test_a_billion_samples_begin_at_once_and_hold_nothing():
    """`python -m benchmarks.sampler` has the time; here it is the space, from the making of the sampler on."""
    list(sampler(10**9, 1024, 8, 8, 5).microbatches(0, 2))  # NumPy's own first call
    step = 700_000_000 // 1024
    tracemalloc.start()
    shard = sampler(10**9, 1024, 8, 8, 5)
    first = next(shard.microbatches(step, step + 10_000)).indices
    peak_of_first = tracemalloc.get_traced_memory()[1]
    count = sum(len(m.indices) for m in shard.microbatches(step, step + 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first[:4].tolist() == [932108177, 511503287, 468603497, 371553482]  # a change would change every run
    assert count == 128_000
    assert peak_of_first < 1e5 and peak < 1e6


def test_the_order_costs_less_than_a_microsecond_a_sample():
    shard = sampler(10**9, 256, 8, 1, 0)
    fastest = float("inf")
    for _ in range(5):
        begun = time.process_time()
        samples = sum(len(m.indices) for m in shard.microbatches(0, 400))
        fastest = min(fastest, (time.process_time() - begun) / samples)
    assert fastest < 1e-6
