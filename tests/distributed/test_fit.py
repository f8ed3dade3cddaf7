"""`batch.microbatches: fit` in a run: found once, then kept. Under limits: tests/failures/test_fit.py."""

import shutil

import pytest
import yaml

from tests.distributed.training import result, train, write_configs

FIT = ("batch.microbatches=fit", "batch.global_size=16", "train.duration=4 steps", "eval.every=4 steps")


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


def recorded(folder, run):
    return yaml.safe_load((folder / run / "config.yaml").read_text())["batch"]["microbatches"]


@pytest.mark.parametrize("exact", ["true", "false"])
def test_where_there_is_room_every_rank_has_one_and_the_probe_leaves_no_trace(run_ranks, folder, exact):
    assert run_ranks(train, 2, folder, "adam.yaml", "fit", *FIT, f"exact={exact}") == [0, 0]
    assert recorded(folder, "fit") == 2
    assert run_ranks(train, 2, folder, "adam.yaml", "two", *FIT, f"exact={exact}", "batch.microbatches=2") == [0, 0]
    assert result(folder / "fit") == result(folder / "two")


def test_what_an_earlier_start_found_is_kept_with_a_checkpoint_and_without(run_ranks, folder):
    assert run_ranks(train, 1, folder, "base.yaml", "run", *FIT, "train.stop_after=1 steps") == [0]
    path = folder / "run" / "config.yaml"
    assert recorded(folder, "run") == 1
    # As if it had been found with less memory, and the run had died before its first save.
    path.write_text(path.read_text().replace("microbatches: 1\n", "microbatches: 16\n"))
    shutil.rmtree(folder / "run" / "checkpoints")
    assert run_ranks(train, 3, folder, "base.yaml", "run", *FIT, "train.stop_after=2 steps") == [0, 0, 0]
    assert recorded(folder, "run") == 16
    assert run_ranks(train, 2, folder, "base.yaml", "run", *FIT) == [0, 0]
    assert run_ranks(train, 1, folder, "base.yaml", "given", *FIT, "batch.microbatches=16") == [0]
    assert recorded(folder, "run") == 16 and result(folder / "run") == result(folder / "given")


def test_a_model_that_cannot_learn_from_one_sample_begins_with_two(run_ranks, folder):
    """BatchNorm over one number."""
    words = (
        *FIT,
        "model={name: resnet_cifar, depth: 8, width: 4}",
        "data={name: synthetic, shape: [3, 4, 4], size: 64}",
    )
    assert run_ranks(train, 2, folder, "base.yaml", "run", *words) == [0, 0]
    assert recorded(folder, "run") == 2
