"""What of `batch.microbatches: fit` is arithmetic."""

from itertools import pairwise

import pytest

from dist_train.config.schema import RunConfig
from dist_train.config.shares import at_least, microbatch_choices, settled, share, smaller
from dist_train.fit import Need, _foretold, _next, _sums, trial_config
from dist_train.memory import scarcest


def config(size: int, microbatches: int | str = "fit") -> RunConfig:
    batch = {"global_size": size, "microbatches": microbatches}
    return RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "cnn"}, "batch": batch})


@pytest.mark.parametrize("size", [1, 7, 24, 60, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_choices_divide_and_give_every_rank_as_many_where_that_is_possible(size, world_size):
    found = microbatch_choices(config(size), world_size)
    assert found == sorted(found) and all(size % parts == 0 for parts in found)
    assert bool(found) == (size >= world_size)
    for parts in found:
        shares = {len(share(rank, world_size, parts)) for rank in range(world_size)}
        assert len(shares) == 1 or size % world_size
    assert at_least(config(size), world_size) == (found[0] if found else world_size)


def test_the_sanity_check_has_two_samples_where_it_can():
    assert trial_config(config(64), 2).batch.microbatch_size == 2
    assert trial_config(config(2), 2).batch.microbatch_size == 1


@pytest.mark.parametrize(
    ("now", "world_size", "said"),
    [
        (16, 2, "batch.microbatches=32 (2 samples each, not 4)"),
        (12, 3, "batch.microbatches=24 (4 samples each, not 8)"),
        (64, 2, "of one sample each"),
    ],
)
def test_the_next_number_that_divides_is_said(now, world_size, said):
    assert said in smaller(config(96 if world_size == 3 else 64, now), world_size)


def test_a_need_that_is_affine_is_foretold_and_never_exceeded():
    """Two ranks with other rooms; whatever the fixed part, no size is tried whose need is above the room."""
    for fixed, each in ((0.1, 0.002), (0.5, 0.01), (0.9, 0.0004), (0.3, 0.2)):
        sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96, 192]

        def need(size, fixed=fixed, each=each):
            loads = [fixed + each * size, 0.5 * (fixed + each * size)]
            return Need(size=size, loads=loads, fixed=[fixed, 0.5 * fixed], used=0, limit=1)

        needs, place = [need(1)], 0
        while (then := _next(sizes, place, len(sizes), needs)) < len(sizes):
            place = then
            needs.append(need(sizes[place]))
        assert all(one.load <= 1 + 1e-9 for one in needs)
        assert place + 1 == len(sizes) or need(sizes[place + 1]).load > 1, "and the largest that fits is found"
        assert all(
            two.size <= 4 * one.size or two.size == sizes[sizes.index(one.size) + 1] for one, two in pairwise(needs)
        )
        if len(needs) > 1:
            assert _foretold(1000, needs) == pytest.approx(need(1000).load)


def test_partial_sums_are_counted_as_the_tree_holds_them():
    assert _sums(1, 1) == [2] and _sums(1, 2) == [3] and _sums(1, 64) == [2 + 6]
    assert _sums(2, 64) == [2 + 5, 2 + 5]
    assert max(_sums(3, 8)) == 4 + 2, "a share that is no node of the tree sends several"
    assert settled(config(64), 8).batch.settled == 8


def test_pages_of_files_count_as_free_and_shared_memory_does_not(tmp_path):
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8000 kB\nMemAvailable: 6000 kB\n")
    files = {
        "limit_in_bytes": "2000000",
        "usage_in_bytes": "1500000",
        "stat": "total_cache 900000\ntotal_shmem 100000\ntotal_mapped_file 200000\n",
    }
    for name, text in files.items():
        (tmp_path / "memory" / "job" / f"memory.{name}").write_text(text)
    found = scarcest("4:memory:/job\n", tmp_path, tmp_path / "proc")
    assert found.is_cgroup and found.left == 2000000 - 1500000 + 600000
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8000 kB\nMemAvailable: 100 kB\n")
    assert scarcest("4:memory:/job\n", tmp_path, tmp_path / "proc").left == 100 * 1024
