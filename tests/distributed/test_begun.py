"""A start that ends before its first step leaves nothing behind; one that has begun is `latest`."""

import os
from pathlib import Path

import pytest
import torch

from dist_train.control.stop import StopFlag
from dist_train.tasks import Task
from tests.distributed.training import train, write_configs

CHANNELS = "augment=[{name: normalize, mean: [0.1, 0.2], std: [1.0, 1.0]}]"
"""Of pictures with one: known only once there are pictures."""


SHIFTY = "task={name: 'tests.distributed.test_begun:Shifty'}"


class Shifty(Task):
    """Reports another name from the second evaluation on; both of a few samples, as the sanity check's are."""

    evaluations = 0

    def loss(self, output, target):
        return torch.nn.functional.cross_entropy(output, target, reduction="sum"), len(target)

    def metrics(self, sums):
        if int(sums["count"]) <= 8:
            return {**super().metrics(sums), "early": 1.0, "late": 1.0}
        Shifty.evaluations += 1
        return {**super().metrics(sums), "early" if Shifty.evaluations == 1 else "late": 1.0}


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


def start(ranks, folder, config, *arguments):
    """As `train`, where the run directory is chosen."""
    from dist_train.worker import main

    with StopFlag().handling_signals() as flag:
        return main([str(Path(folder) / config), f"run_root={folder}/runs", *arguments], flag)


def content(folder):
    """Every file's bytes, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_directory_that_the_start_made_goes_again_with_those_around_it(run_ranks, folder, ranks):
    before = content(folder)
    assert run_ranks(train, ranks, folder, "base.yaml", "a/b/c", CHANNELS) == [2] * ranks
    assert run_ranks(start, ranks, folder, "base.yaml", CHANNELS) == [2] * ranks
    assert content(folder) == before


def test_a_directory_that_was_there_stays_equal_to_the_byte(run_ranks, folder):
    (folder / "empty").mkdir()
    run_ranks(train, 1, folder, "base.yaml", "run", "train.stop_after=3 steps")
    with open(folder / "run" / "metrics.jsonl", "a") as file:  # as if it had been killed after later steps
        file.write('{"kind": "train", "step": 4}\n' * 5000)
    with open(folder / "run" / "logs" / "rank0.log", "a") as file:
        file.write("many words\n" * 20_000)
    before = content(folder)
    for _ in range(2):
        assert run_ranks(train, 1, folder, "base.yaml", "run", CHANNELS, "--allow-change", "augment") == [2]
        assert run_ranks(train, 1, folder, "base.yaml", "empty", CHANNELS) == [2]
        assert run_ranks(train, 1, folder, "base.yaml", "run", "--resume", "none") == [2]
    assert content(folder) == before


def test_latest_moves_with_the_first_step_and_not_before(run_ranks, folder):
    latest = folder / "runs" / "t" / "latest"
    assert run_ranks(start, 1, folder, "base.yaml", "train.stop_after=2 steps") == [0]
    first = latest.resolve()
    assert first.parent == latest.parent and (first / "checkpoints").is_dir()
    assert run_ranks(start, 1, folder, "base.yaml", CHANNELS) == [2]
    assert run_ranks(start, 1, folder, "base.yaml", "data={name: image_folder, root: no, eval_fraction: 0.1}") == [13]
    assert latest.resolve() == first
    assert run_ranks(start, 1, folder, "base.yaml", "train.stop_after=1 steps") == [0]
    second = latest.resolve()
    assert second != first
    assert run_ranks(train, 1, folder, "base.yaml", first, f"run_root={folder}/runs", "train.stop_after=3 steps") == [0]
    assert latest.resolve() == first  # going on with an older one makes it the latest


def test_auto_goes_on_where_the_newest_start_came_to_nothing(run_ranks, folder, capfd):
    assert run_ranks(start, 1, folder, "base.yaml", "train.stop_after=2 steps") == [0]
    run = (folder / "runs" / "t" / "latest").resolve()
    (folder / "runs" / "t" / "zz").mkdir()
    os.remove(folder / "runs" / "t" / "latest")
    os.symlink("zz", folder / "runs" / "t" / "latest")
    assert run_ranks(start, 1, folder, "base.yaml", "train.stop_after=3 steps", "--resume", "auto") == [0]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert f"--resume auto: going on with {run} from step-00000002" in (run / "logs" / "rank0.log").read_text()


def test_from_the_first_step_on_nothing_ends_with_2(run_ranks, folder):
    more = [SHIFTY, "eval.best=early", "eval.every=2 steps", "checkpoint.every=2 steps"]
    assert run_ranks(train, 2, folder, "base.yaml", "run", *more) == [10, 10]
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["step-00000002"]
