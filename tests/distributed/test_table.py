"""A table through a training: the same bits on any number of ranks, and one scale for training and evaluation."""

import csv
import json
import random

import pytest

from dist_train.errors import ExitCode
from tests.distributed.test_exactness import dies
from tests.distributed.training import evaluate_run, result, train

CONFIG = """
name: t
data: {name: table, root: {folder}/points.csv, targets: [side]}
model: {name: mlp, hidden: [8]}
optimizer: {name: sgd, lr: 0.5}
batch: {microbatches: 6, global_size: 24}
train: {duration: 2 epochs}
tracking: {samples: true, wandb: {mode: disabled}}
"""


@pytest.fixture
def folder(tmp_path):
    draw = random.Random(0)
    points = [(draw.gauss(5, 2), draw.gauss(-100, 30)) for _ in range(120)]
    with (tmp_path / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("x", "y", "side"), *((x, y, "near" if x > 5 else "far") for x, y in points)])
    (tmp_path / "table.yaml").write_text(CONFIG.replace("{folder}", str(tmp_path)))
    return tmp_path


def test_any_number_of_ranks_ends_in_the_same_bits_and_another_table_is_refused(run_ranks, folder):
    for ranks in (1, 3):
        assert run_ranks(train, ranks, folder, "table.yaml", f"w{ranks}") == [0] * ranks
    assert result(folder / "w1") == result(folder / "w3")
    assert result(folder / "w1")[1][-1]["accuracy"] > 0.85
    assert run_ranks(evaluate_run, 1, folder / "w1") == [0]
    with (folder / "points.csv").open("a") as file:
        file.write("5.5,1000,near\n" * 30)
    assert run_ranks(evaluate_run, 1, folder / "w1") == [ExitCode.DATA]


def test_killed_on_1_and_on_3_ranks_and_gone_on_with_2_it_ends_as_undisturbed_on_1(run_ranks, folder):
    """Each epoch is a permutation of the rows that are trained on."""
    often = "checkpoint.every=2 steps"
    assert run_ranks(train, 1, folder, "table.yaml", "whole", often) == [0]
    arguments = (folder, "table.yaml", "pieces", often)
    dies(run_ranks, 1, [0], ("step", 4), *arguments)
    dies(run_ranks, 3, [1], ("step", 4), *arguments)
    assert run_ranks(train, 2, *arguments) == [0, 0]
    whole = result(folder / "whole")
    assert result(folder / "pieces") == whole
    seen = [index for line in whole[2] for part in json.loads(line)["indices"] for index in part]
    steps = len(whole[2]) // 2
    for epoch in (seen[: 24 * steps], seen[24 * steps :]):
        assert len(epoch) == len(set(epoch)) == 24 * steps
