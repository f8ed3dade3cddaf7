"""`eval.data`: the data set that is evaluated is another one than that of the training."""

import json

import pytest
import torch
from torchvision.io import write_png

from dist_train.config.schema import RunConfig
from dist_train.config.source import load
from dist_train.data import datasets
from dist_train.errors import UserError
from tests.distributed.training import evaluate_run, train

CONFIG = """
data: {name: image_folder, root: ROOT/data, eval_fraction: 0.5, image_size: 8}
eval: {data: {name: image_folder, root: ROOT/other, image_size: 8}, batch_size: 4}
model: {name: cnn, width: 2}
batch: {global_size: 8, microbatches: 4}
optimizer: {name: sgd, lr: 0.05}
train: {duration: 3 steps}
loader: {workers: 0}
tracking: {wandb: {mode: disabled}}
"""
PIXELS = {"bird": 2, "cat": 0, "dog": 1}


class Eight:
    """Has no training split."""

    classes = ("bird", "cat", "dog")

    def __init__(self, split, classes=classes, side=8):
        assert split == "evaluation"
        self.classes, self._side = classes, side

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((3, self._side, self._side), index, dtype=torch.uint8), index % 3


def write_images(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = torch.full((3, 9, 9), 20 + index, dtype=torch.uint8)
            image[PIXELS[name]] += 150
            write_png(image, str(folder / name / f"{index}.png"))


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "data", {"bird": 8, "cat": 8, "dog": 8})
    write_images(tmp_path / "other", {"cat": 3, "dog": 4})  # cat is class 1 of the training, and the first folder here
    (tmp_path / "c.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    return tmp_path


def evaluations(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time"} for row in rows if row["kind"] == "evaluation"]


def test_another_folder_is_evaluated_with_the_numbers_of_the_training(run_ranks, folder):
    """And by the command without the data of the training, which may be gone."""
    assert run_ranks(train, 1, folder, "c.yaml", "1") == [0]
    assert run_ranks(train, 2, folder, "c.yaml", "2") == [0, 0]
    assert evaluations(folder / "1") == evaluations(folder / "2")
    assert evaluations(folder / "1")[-1]["per_class"]["support"] == [0, 3, 4]
    manifest, *_ = (folder / "1/checkpoints").glob("*/manifest.json")
    assert {k: v["samples"] for k, v in json.loads(manifest.read_text())["data"].items() if k != "classes"} == {
        "train": 12,
        "evaluation": 7,
    }
    (folder / "data").rename(folder / "gone")
    assert run_ranks(evaluate_run, 1, folder / "1") == [0]
    (folder / "other/cat").rename(folder / "other/lion")
    assert run_ranks(evaluate_run, 1, folder / "1") == [13]


OWN = "eval.data={{name: 'tests.distributed.test_eval_data:Eight', args: {{{}}}}}"
UNLIKE = {
    OWN.format("classes: [cat, dog, bird]"): "has cat for class 0, which was bird in training",
    OWN.format("classes: [bird, cat]"): "has 2 classes, and the model was trained for 3",
    OWN.format("side: 9"): "has inputs of the shape [3, 9, 9], and those of the training have [3, 8, 8]",
    "eval.data={name: digits}": "this digits of eval.data has 0 for class 0, which was bird in training",
}


@pytest.mark.parametrize("other", UNLIKE)
def test_data_that_is_unlike_that_of_the_training_is_refused(folder, other):
    with pytest.raises(UserError) as refused:
        datasets.build_all(load(str(folder / "c.yaml"), [other]))
    assert UNLIKE[other] in str(refused.value) and refused.value.code == 13


def test_a_data_set_of_ones_own_needs_no_training_split(folder):
    splits = datasets.build_all(load(str(folder / "c.yaml"), [OWN.format("")]))
    assert (len(splits.train), len(splits.evaluation)) == (12, 8)


def test_a_table_is_normalised_as_that_of_the_training_or_not_at_all(tmp_path):
    for name, first in (("a", 0), ("b", 7)):
        rows = [f"{first + k},{k % 5}.5" for k in range(20)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["x,y", *rows]))

    def tables(**more):
        a, b = ({"name": "table", "root": str(tmp_path / f"{n}.csv"), "targets": ["y"], **more} for n in "ab")
        return RunConfig.model_validate({"data": a, "eval": {"data": b}, "model": {"name": "mlp"}})

    with pytest.raises(UserError, match="table of eval.data has another mean or deviation in its training split"):
        datasets.build_all(tables())
    splits = datasets.build_all(tables(normalize=False))
    assert (len(splits.train), len(splits.evaluation)) == (16, 20)
