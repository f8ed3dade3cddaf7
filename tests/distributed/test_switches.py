"""The switches of the config, each in a real training."""

import itertools
import json
import math

import pytest
import torch

from dist_train import evaluate, trainer
from dist_train.checkpoint.store import CheckpointStore
from tests.distributed.training import result, train, write_configs
from tests.rank_pool import RankFailed


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


def _state(folder):
    return json.loads((folder / "run" / "state.json").read_text())


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.precision=fp16", "train.clip_norm=1.0"],
        ["model.channels_last=true", "train.ema_decay=0.5"],
        ["augment=[{name: mixup}, {name: cutmix}]", "task.label_smoothing=0.1"],
        ["loader.workers=2", "eval.mode=rank0"],
    ],
    ids=lambda overrides: overrides[-1].split("=")[0],
)
def test_it_trains_and_is_the_same_when_resumed(run_ranks, folder, overrides):
    run_ranks(train, 2, folder, "base.yaml", "whole", "train.duration=6 steps", *overrides)
    losses = [row["loss"] for row in result(folder / "whole")[1] if row["kind"] == "train"]
    assert len(losses) == 6 and all(map(math.isfinite, losses))
    for stop in (4, 6):
        run_ranks(
            train, 2, folder, "base.yaml", "run", "train.duration=6 steps", f"train.stop_after={stop} steps", *overrides
        )
    assert result(folder / "run") == result(folder / "whole")


def test_sync_batchnorm_on_a_cpu_is_refused_in_one_line(run_ranks, folder):
    """torch has it for GPUs alone."""
    overrides = ["exact=false", "model.sync_batchnorm=true"]
    assert run_ranks(train, 2, folder, "base.yaml", "run", *overrides) == [2, 2]


@pytest.mark.parametrize("part", ["train", "evaluation"])
def test_data_that_ends_early_is_no_success(run_ranks, folder, part):
    assert run_ranks(_with_less, 1, folder, part) == [10]
    assert _state(folder)["status"] != "done"


def _with_less(ranks, folder, part):
    """The loader's own batches, and fewer of them than were asked for."""
    owner, name = {"train": trainer, "evaluation": evaluate}[part], f"{part}_batches"
    whole = getattr(owner, name)
    setattr(owner, name, lambda *given, **options: itertools.islice(whole(*given, **options), 2))
    return train(ranks, folder, "base.yaml", "run", "eval.every=1 steps", "eval.batch_size=64")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_raises_stop_iteration_fails(run_ranks, folder, workers):
    data = "data={name: 'tests.distributed.test_switches:Ending'}"
    with pytest.raises(RankFailed, match="StopIteration: no more rows\nwhile reading sample 300 of Ending"):
        run_ranks(train, 1, folder, "base.yaml", "run", data, "augment=[]", f"loader.workers={workers}")


class Ending:
    """A data set that takes its rows from an iterator, which ends."""

    classes, shape = ("a", "b"), (1, 8, 8)

    def __init__(self, split):
        pass

    def __len__(self):
        return 600

    def __getitem__(self, index):
        if index == 300:
            raise StopIteration("no more rows")
        return torch.zeros(1, 8, 8), index % 2


def test_early_stopping_ends_the_training_and_it_stays_ended(run_ranks, folder):
    patient = ["eval.every=1 steps", "eval.best=loss", "eval.best_is=max", "train.early_stopping.patience=2"]
    run_ranks(train, 2, folder, "base.yaml", "run", *patient)
    state = _state(folder)
    assert state["status"] == "done" and state["step"] == state["best"]["step"] + 2 < 22
    said = f"stopping early at step {state['step']} of 22: no improvement of loss since step {state['best']['step']} ("
    assert (folder / "run/logs/rank0.log").read_text().count(said) == 1
    before = result(folder / "run")
    run_ranks(train, 1, folder, "base.yaml", "run", *patient)
    assert result(folder / "run") == before


def test_a_metric_that_does_not_exist_is_an_error_that_lists_those_that_do(run_ranks, folder):
    assert run_ranks(train, 2, folder, "base.yaml", "run", "eval.best=acuracy", "eval.every=2 steps") == [2, 2]


def test_the_best_checkpoint_is_kept_and_judged_on_the_test_split(run_ranks, folder):
    write_images(folder / "images")
    data = (
        f"data={{name: image_folder, root: {folder / 'images'}, train: train, eval: eval, test: test, image_size: 8}}"
    )
    small = ["batch.global_size=8", "train.duration=12 steps", "eval.every=3 steps", "checkpoint.every=5 steps"]
    run_ranks(train, 2, folder, "base.yaml", "run", data, "augment=[]", *small)
    rows = [row for row in result(folder / "run")[1] if row["kind"] == "evaluation"]
    assert [row["split"] for row in rows] == ["evaluation"] * 4 + ["test"]
    best = _state(folder)["best"]["step"]
    assert rows[-1]["step"] == best == max(rows[:-1], key=lambda row: row["accuracy"])["step"]
    assert best in [int(path.name[5:]) for path in CheckpointStore(folder / "run" / "checkpoints").all()]


def write_images(folder):
    """Dark and bright squares, PNG."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("eval", 7), ("test", 5)):
        for name, level in (("dark", 60), ("bright", 190)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.normal(level, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
