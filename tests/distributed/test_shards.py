"""Trainings on tar files: equal on any number of ranks, killed and gone on with others; each sample once an epoch."""

import json

import pytest

from benchmarks.shards import make
from tests.distributed.training import result, train

CONFIG = """
name: t
data: {name: shards, train: ROOT/train-*.tar, eval: "ROOT/eval-{000..001}.tar", classes: 10, image_size: 8}
augment: [{name: random_resized_crop}, {name: horizontal_flip}]
model: {name: cnn, width: 4, dropout: 0.2}
loader: {workers: 0}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
batch: {microbatches: 6, global_size: 24}
train: {duration: 2 epochs}
eval: {every: 1 epochs}
checkpoint: {every: 3 steps}
tracking: {every: 3 steps, samples: true, wandb: {mode: disabled}}
"""
SAMPLES = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    make(folder, SAMPLES, 7)
    make(folder, 30, 2, "eval")
    (folder / "c.yaml").write_text(CONFIG.replace("ROOT", str(folder)))
    return folder


@pytest.fixture(scope="module")
def alone(folder, run_ranks):
    assert run_ranks(train, 1, folder, "c.yaml", "alone") == [0]
    return result(folder / "alone")


def test_each_epoch_is_a_permutation_of_all_samples(alone):
    seen = [index for line in alone[2] for part in json.loads(line)["indices"] for index in part]
    assert len(alone[2]) == 20 and sorted(seen[:SAMPLES]) == sorted(seen[SAMPLES:]) == [*range(SAMPLES)]
    assert seen[:SAMPLES] != seen[SAMPLES:] != [*range(SAMPLES)]


@pytest.mark.long
def test_any_number_of_ranks_and_loading_processes_ends_equal(folder, alone, run_ranks):
    for world, workers in ((2, 1), (3, 0)):
        run = f"on{world}"
        assert run_ranks(train, world, folder, "c.yaml", run, f"loader.workers={workers}") == [0] * world
        assert result(folder / run) == alone


def test_stopped_and_gone_on_with_other_ranks_it_ends_equal(folder, alone, run_ranks):
    assert run_ranks(train, 1, folder, "c.yaml", "chain", "train.stop_after=7 steps") == [0]
    assert run_ranks(train, 3, folder, "c.yaml", "chain", "train.stop_after=6 steps") == [0] * 3
    assert run_ranks(train, 2, folder, "c.yaml", "chain") == [0] * 2
    assert result(folder / "chain") == alone
