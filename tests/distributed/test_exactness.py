"""The same bits at any world size, and after any stop or death."""

import json
import os
import shutil
import signal

import pytest

from tests.distributed.training import result, train, write_configs
from tests.rank_pool import RankFailed

SIZES, FEWER = (1, 2, 3, 4, 5, 8), (1, 2, 3)
"""Numbers of ranks, in the long suite and always."""


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


def _all_equal(run_ranks, folder, sizes, config, *overrides):
    """Trains on all these numbers of ranks; returns what they all end with."""
    for world_size in sizes:
        arguments = (folder, config, f"w{world_size}", *overrides)
        assert run_ranks(train, world_size, *arguments, timeout=200) == [0] * world_size
    expected = result(folder / "w1")
    for world_size in sizes:
        assert result(folder / f"w{world_size}") == expected
    return expected


@pytest.mark.parametrize("config", ["base.yaml", "adam.yaml"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_number_of_ranks_ends_in_the_same_bits(run_ranks, folder, config, precision):
    """Convolution, BatchNorm, dropout, augmentation, momentum; and AdamW, LayerNorm, clipping, averaging. With fewer
    ranks than the eight microbatches, gradients are accumulated."""
    overrides = [f"train.precision={precision}", "train.duration=6 steps", "eval.every=3 steps"]
    as_many_as_microbatches = [8] * (precision == "bf16" and config == "adam.yaml")  # of base.yaml: test_replay.py
    sizes = [*FEWER, *as_many_as_microbatches]
    _, rows, samples = _all_equal(run_ranks, folder, sizes, config, *overrides)
    assert len(rows) == 6 + 2
    log = [json.loads(line) for line in samples]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    seen = [index for row in log for part in row["indices"] for index in part]
    assert len(seen) == len(set(seen)) == 6 * 64


@pytest.mark.long
@pytest.mark.parametrize("config", ["base.yaml", "adam.yaml"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("microbatches", [8, 12, 64])
def test_three_epochs_on_any_number_of_ranks_end_in_the_same_bits(run_ranks, folder, config, precision, microbatches):
    size = ["batch.global_size=192", f"batch.microbatches={microbatches}"]
    overrides = [f"train.precision={precision}", "train.duration=3 epochs", *size]
    _, rows, _ = _all_equal(run_ranks, folder, SIZES, config, *overrides)
    assert len(rows) == 21 + 2


def test_without_exact_the_samples_are_the_same_and_the_bits_need_not_be(run_ranks, folder):
    for world_size in (1, 2):
        run_ranks(train, world_size, folder, "base.yaml", f"w{world_size}", "exact=false")
    one, two = (result(folder / f"w{world_size}") for world_size in (1, 2))
    for left, right in zip(one[1], two[1], strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-3)
    assert one[2] == two[2]


# ---------------------------------------------------------------- deaths


def _train_and_die(ranks, doomed, place, *arguments):
    """One life, in which the ranks `doomed` kill themselves as they begin the nth ("step", n) or ("evaluation", n)."""
    if ranks.rank in doomed:
        _lay_mine(*place)
    return train(ranks, *arguments)


def _lay_mine(kind, number):
    from dist_train import loop, trainer

    owner, name = {"step": (loop, "train_step"), "evaluation": (trainer, "evaluate")}[kind]
    plain, calls = getattr(owner, name), []

    def mined(*arguments, **keywords):
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **keywords)

    setattr(owner, name, mined)


def dies(run_ranks, world_size, doomed, place, *arguments):
    with pytest.raises(RankFailed, match="killed by SIGKILL"):
        run_ranks(_train_and_die, world_size, doomed, place, *arguments)


@pytest.mark.parametrize("config", ["base.yaml", pytest.param("adam.yaml", marks=pytest.mark.long)])
def test_killed_and_resumed_in_one_epoch_on_1_3_2_8_and_4_ranks(run_ranks, folder, config, whole):
    """Each life is killed without a word, by one of its ranks or all, some steps after its last checkpoint."""
    if config != "base.yaml":
        run_ranks(train, 2, folder, config, "whole", "checkpoint.every=2 steps")
        whole = result(folder / "whole")
    arguments = (folder, config, "pieces", "checkpoint.every=2 steps")
    dies(run_ranks, 1, [0], ("step", 6), *arguments)
    dies(run_ranks, 3, [1], ("step", 6), *arguments)
    dies(run_ranks, 2, [0, 1], ("step", 4), *arguments)
    dies(run_ranks, 8, [7], ("step", 6), *arguments)
    assert run_ranks(train, 4, *arguments) == [0] * 4
    assert result(folder / "pieces") == whole


def test_killed_inside_an_evaluation_and_at_the_end_of_an_epoch(run_ranks, folder):
    overrides = ["train.duration=2 epochs", "eval.every=1 epochs", "checkpoint.every=1 epochs"]
    run_ranks(train, 2, folder, "base.yaml", "whole", *overrides)
    arguments = (folder, "base.yaml", "pieces", *overrides)
    dies(run_ranks, 1, [0], ("evaluation", 1), *arguments)
    dies(run_ranks, 2, [1], ("evaluation", 1), *arguments)
    dies(run_ranks, 3, [0], ("step", 23), *arguments)  # the first of the second epoch
    dies(run_ranks, 2, [0], ("evaluation", 1), *arguments)
    assert run_ranks(train, 2, *arguments) == [0, 0]
    assert result(folder / "pieces") == result(folder / "whole")


@pytest.mark.long
def test_killed_ten_times_in_one_epoch(run_ranks, folder):
    run_ranks(train, 2, folder, "base.yaml", "whole", "checkpoint.every=1 steps")
    arguments = (folder, "base.yaml", "pieces", "checkpoint.every=1 steps")
    for number, world_size in enumerate([1, 2, 3, 4, 5, 8, 2, 1, 3, 2]):
        dies(run_ranks, world_size, [number % world_size], ("step", 3), *arguments)
    assert run_ranks(train, 2, *arguments) == [0, 0]
    assert result(folder / "pieces") == result(folder / "whole")


def test_stopped_and_resumed_twice_in_one_epoch_on_other_numbers_of_ranks(run_ranks, folder, whole):
    for world_size, stop in ((1, 5), (3, 13), (2, 22)):
        run_ranks(train, world_size, folder, "base.yaml", "pieces", f"train.stop_after={stop} steps")
    assert result(folder / "pieces") == whole


def test_how_many_threads_the_environment_offers_makes_no_difference(run_ranks, folder):
    """Sums inside an operation are split among threads: with this model and batch, four give other bits than one."""
    overrides = ["model.width=32", "batch.microbatches=1", "train.duration=4 steps"]
    for offered in ("1", "4"):
        arguments = (folder, "base.yaml", f"t{offered}", *overrides)
        assert run_ranks(train, 1, *arguments, environment={"OMP_NUM_THREADS": offered}) == [0]
    assert result(folder / "t1") == result(folder / "t4")


@pytest.mark.parametrize("layout", ["false", "true"])
def test_the_size_of_buckets_makes_no_difference(run_ranks, folder, layout):
    """A gradient lies elsewhere in another bucket; three ranks of eight microbatches add nodes beside each other."""
    overrides = [f"model.channels_last={layout}", "train.duration=3 steps", "train.clip_norm=0.5"]
    for size in ("0.001", "25"):
        run_ranks(train, 3, folder, "base.yaml", f"b{size}", f"distributed.bucket_mb={size}", *overrides)
    run_ranks(train, 1, folder, "base.yaml", "one", *overrides)
    assert result(folder / "b0.001") == result(folder / "b25") == result(folder / "one")


def test_another_seed_is_another_run(run_ranks, folder):
    for seed in (0, 1):
        run_ranks(train, 1, folder, "base.yaml", f"s{seed}", f"seed={seed}", "train.stop_after=2 steps")
    first, second = (result(folder / f"s{seed}") for seed in (0, 1))
    assert first[0] != second[0] and first[2] != second[2]


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


# ---------------------------------------------------------------- torch.compile, and what is refused


@pytest.mark.long
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler: no c++ on PATH")
def test_a_compiled_model_is_the_same_on_any_number_of_ranks(run_ranks, folder):
    overrides = ["model.compile=true", "train.duration=4 steps", "eval.every=4 steps"]
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    for world_size in (1, 2, 3):
        arguments = (folder, "base.yaml", f"w{world_size}", *overrides)
        codes = run_ranks(train, world_size, *arguments, timeout=280, environment=caches)
        assert codes == [0] * world_size
    assert result(folder / "w1") == result(folder / "w2") == result(folder / "w3")
    assert any((folder / "inductor").rglob("*.cpp"))


def test_more_ranks_than_microbatches_say_what_to_set(run_ranks, folder):
    answers = run_ranks(_train_and_tell, 3, folder, "batch.microbatches=2")
    assert [code for code, _ in answers] == [2, 2, 2]
    assert answers[0][1].startswith("3 ranks need at least as many microbatches, and batch.microbatches is 2: ")
    run_ranks(train, 1, folder, "base.yaml", "run", "batch.microbatches=auto", "train.stop_after=1 steps")
    assert "batch.microbatches is 1" in run_ranks(_train_and_tell, 2, folder, "batch.microbatches=auto")[0][1]


def _train_and_tell(ranks, folder, *overrides):
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = train(ranks, folder, "base.yaml", "run", *overrides)
    return code, said.getvalue()
