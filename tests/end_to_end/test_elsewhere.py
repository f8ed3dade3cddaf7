"""A run that is evaluated where it was not trained: data is elsewhere, it moved, or a checkpoint is all there is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from dist_train.checkpoint.store import locate
from tests.distributed.training import train_there
from tests.rank_pool import run_ranks

BIN = Path(sys.executable).parent
CONFIG = """
data: {name: image_folder, root: data, train: train, eval: val, image_size: 8}
model: {name: cnn, width: 2}
batch: {global_size: 8, microbatches: 2}
optimizer: {name: sgd, lr: 0.05}
train: {duration: 1 epoch}
loader: {workers: 0}
tracking: {wandb: {mode: disabled}}
"""
CANARY = "open({path!r}, 'w').close()\nraise SystemExit('code of the stranger')\n"


def run(folder, *command, code=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data, and one with a run, a copy of its checkpoint, and modules of a stranger's."""
    folder = tmp_path_factory.mktemp("trained")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(("cat", "dog")):
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                image = torch.randint(0, 60, (3, 10, 12), generator=generator, dtype=torch.uint8)
                image[number] += 150
                write_png(image, str(folder / "data" / split / name / f"{index}.png"))
    (folder / "c.yaml").write_text(CONFIG)
    assert run_ranks(train_there, 1, folder, "c.yaml", "r") == [0]
    elsewhere = folder / "else"
    elsewhere.mkdir()
    (folder / "r").rename(elsewhere / "r")
    shutil.copytree(locate(elsewhere / "r", print).path, elsewhere / "ck")
    for name in ("torch", "json", "numpy", "dist_train", "launch"):
        (elsewhere / f"{name}.py").write_text(CANARY.format(path=str(folder / "canary")))
    yield folder
    assert not (folder / "canary").exists()


def figures(folder, *words):
    printed, _ = run(folder, "dist-train", "evaluate", *words, "--nproc-per-node", "1", "--json")
    found = json.loads(printed)
    return {name: found[name] for name in ("step", "loss", "accuracy")}


def test_a_run_and_a_lone_checkpoint_are_evaluated_on_data_that_is_elsewhere(trained):
    elsewhere = trained / "else"
    recorded = json.loads((elsewhere / "r" / "state.json").read_text())
    of_run, of_checkpoint = (figures(elsewhere, target, "data.root=../data") for target in ("r", "ck"))
    assert of_run == of_checkpoint
    assert of_run == {"step": 2, **{name: recorded["metrics"][name] for name in ("loss", "accuracy")}}


def test_a_lone_checkpoint_predicts(trained):
    printed, _ = run(trained / "else", "dist-train", "predict", "ck", "../data/val/cat", "data.resize=9", "--json")
    assert [row["class"] in ("cat", "dog") for row in json.loads(printed)] == [True] * 4


def test_other_classes_are_told_and_not_counted(trained):
    if not (trained / "other").exists():
        shutil.copytree(trained / "data", trained / "other")
        for split in ("train", "val"):
            (trained / "other" / split / "dog").rename(trained / "other" / split / "ant")
    words = ("evaluate", "ck", "data.root=../other", "--nproc-per-node", "1")
    _, said = run(trained / "else", "dist-train", *words, code=13)
    assert "ant for class 0, which was cat in training" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evaluate", "r", "model.width=3"), "no override that a saved model can be evaluated with"),
        (("evaluate", "r", "data.rot=x"), "Did you mean root?"),
        (("evaluate", "..", "data.root=x"), "neither a run directory nor a checkpoint"),
        (("predict", "ck", "nothing.png"), "nothing.png: no such file or folder"),
        (("predict", "ck", "data.resize=9"), "predict from what?"),
    ],
)
def test_a_mistake_is_one_line(trained, words, told):
    _, said = run(trained / "else", "dist-train", *words, code=2)
    assert told in said and len(said.strip().splitlines()) == 1
