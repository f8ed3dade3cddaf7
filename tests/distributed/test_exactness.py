"""The same bits at any world size, and after any stop."""

import pytest

from tests.distributed.training import result, train, write_configs


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


@pytest.mark.parametrize("config", ["base.yaml", "adam.yaml"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_number_of_ranks_ends_in_the_same_bits(run_ranks, folder, config, precision):
    """Convolution, BatchNorm, dropout, augmentation, momentum; and AdamW, LayerNorm-free, clipping, averaging."""
    for world_size in (1, 2, 3, 4):
        run = f"w{world_size}"
        assert run_ranks(train, world_size, folder, config, run, f"train.precision={precision}") == [0] * world_size
    expected = result(folder / "w1")
    assert len(expected[1]) == 22 + 2
    for world_size in (2, 3, 4):
        assert result(folder / f"w{world_size}") == expected


def test_without_exact_the_samples_are_the_same_and_the_bits_need_not_be(run_ranks, folder):
    for world_size in (1, 2):
        run_ranks(train, world_size, folder, "base.yaml", f"w{world_size}", "exact=false")
    one, two = (result(folder / f"w{world_size}")[1] for world_size in (1, 2))
    for left, right in zip(one, two, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-3)


def test_stopped_and_resumed_twice_in_one_epoch_on_other_numbers_of_ranks(run_ranks, folder):
    run_ranks(train, 2, folder, "base.yaml", "whole")
    for world_size, stop in ((1, 5), (3, 13), (2, 22)):
        run_ranks(train, world_size, folder, "base.yaml", "pieces", f"train.stop_after={stop} steps")
    assert result(folder / "pieces") == result(folder / "whole")


def test_another_seed_is_another_run(run_ranks, folder):
    for seed in (0, 1):
        run_ranks(train, 1, folder, "base.yaml", f"s{seed}", f"seed={seed}", "train.stop_after=2 steps")
    assert result(folder / "s0")[0] != result(folder / "s1")[0]


def test_auto_microbatches_stay_those_of_the_first_life(run_ranks, folder):
    run_ranks(train, 2, folder, "base.yaml", "whole", "batch.microbatches=auto")
    run_ranks(train, 2, folder, "base.yaml", "pieces", "batch.microbatches=auto", "train.stop_after=7 steps")
    run_ranks(train, 1, folder, "base.yaml", "pieces", "batch.microbatches=auto")
    assert result(folder / "pieces") == result(folder / "whole")
    assert "microbatches: 2" in (folder / "pieces" / "config.yaml").read_text()


def test_after_the_last_step_there_is_nothing_to_do(run_ranks, folder):
    run_ranks(train, 1, folder, "base.yaml", "run", "train.duration=3 steps")
    before = result(folder / "run")
    assert run_ranks(train, 2, folder, "base.yaml", "run", "train.duration=3 steps") == [0, 0]
    assert result(folder / "run") == before
