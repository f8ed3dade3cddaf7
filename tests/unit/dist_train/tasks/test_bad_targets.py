"""Each built-in task, and what may be wrong with targets: one line before the first step, exit code 13."""

import math

import pytest
import torch

from dist_train import tasks
from dist_train.config.schema import RunConfig
from dist_train.data import datasets
from dist_train.errors import ExitCode, UserError
from dist_train.samples import draw_samples
from tests.distributed.kinds import Kind

CLASS = "classification takes the number of one class, a whole number, for each sample"
LABELS = "multi_label takes a 0 or 1 for each of the 3 classes: [3]"
NUMBERS = "regression takes a number, or several in one shape for all samples"
PIXELS = "segmentation takes the number of a class, a whole number, for each pixel: [height, width]"
TOKENS = "language_model takes the numbers of the next tokens, whole numbers: [length]"
TABLE = [
    ("classification", 1.0, f"the target is float64; {CLASS}"),
    ("classification", [1, 2], f"the target is a list; {CLASS}"),
    ("classification", torch.zeros(2), f"the target is float32 of shape [2]; {CLASS}"),
    ("classification", 3, "the target is 3, and there are the classes 0 to 2"),
    ("classification", -1, "the target is -1, and there are the classes 0 to 2"),
    ("classification", torch.tensor([0.5, math.nan, 0.5]), "[0.5, nan, 0.5], and shares of the classes are 0 or more"),
    ("classification", torch.tensor([1.5, -0.5, 0.0]), "[1.5, -0.5, 0], and shares of the classes are 0 or more"),
    ("classification", "cat", f"the target is text; {CLASS}"),
    ("classification", None, f"the target is missing; {CLASS}"),
    ("multi_label", torch.zeros(3, dtype=torch.complex64), f"the target is complex64 of shape [3]; {LABELS}"),
    ("multi_label", torch.zeros(4), f"the target is float32 of shape [4]; {LABELS}"),
    ("multi_label", 1, f"the target is int64; {LABELS}"),
    ("multi_label", torch.tensor([0, 2, 1]), "the target of class 1 is 2, and must be 0 or 1"),
    ("multi_label", torch.tensor([0, 1, math.nan]), "the target of class 2 is nan, and must be 0 or 1"),
    ("multi_label", None, f"the target is missing; {LABELS}"),
    ("regression", "much", f"the target is text; {NUMBERS}"),
    ("regression", torch.tensor(1j), f"the target is complex64; {NUMBERS}"),
    ("regression", torch.tensor([0.0, math.inf]), "the target is inf, which is not finite"),
    ("regression", math.nan, "the target is nan, which is not finite"),
    ("regression", {"x": 1.0}, f"the target is a dict; {NUMBERS}"),
    ("regression", None, f"the target is missing; {NUMBERS}"),
    ("segmentation", torch.zeros(8, 8), f"the target is float32 of shape [8, 8]; {PIXELS}"),
    ("segmentation", torch.zeros(1, 8, 8).long(), f"the target is int64 of shape [1, 8, 8]; {PIXELS}"),
    ("segmentation", 2, f"the target is int64; {PIXELS}"),
    ("segmentation", torch.full((8, 8), 3), "the target of the pixel in row 0, column 0 is 3, and there are the"),
    ("segmentation", None, f"the target is missing; {PIXELS}"),
    ("language_model", torch.zeros(12), f"the target is float32 of shape [12]; {TOKENS}"),
    ("language_model", 3, f"the target is int64; {TOKENS}"),
    ("language_model", torch.full((12,), -1), "the target at place 0 is -1, and there are the tokens 0 to"),
    ("language_model", "the end", f"the target is text; {TOKENS}"),
    ("language_model", None, f"the target is missing; {TOKENS}"),
]
"""Task, what each target is, what is said behind the sample's number. None: the sample is a dict of inputs alone."""


class Wrong(Kind):
    def __init__(self, split, place):
        self._kind, self._bad, _ = TABLE[place]
        super().__init__(split, self._kind)

    def __getitem__(self, index):
        image, _ = super().__getitem__(index)
        return {"image": image} if self._bad is None else (image, self._bad)


@pytest.mark.parametrize("place", range(len(TABLE)), ids=lambda place: f"{TABLE[place][0]} {TABLE[place][2][:30]}")
def test_a_wrong_target_is_named_before_the_first_step(place):
    name, _, words = TABLE[place]
    config = RunConfig.model_validate(
        {
            "data": {"name": f"{__name__}:Wrong", "args": {"place": place}},
            "model": {"name": "mlp"},
            "task": {"name": name},
            "loader": {"workers": 0},
            "batch": {"global_size": 12, "microbatches": 3},
        }
    )
    splits = datasets.build(config.data)
    with pytest.raises(UserError) as refused:
        draw_samples(config, splits, tasks.build(config.task, splits.classes), torch.device("cpu"))
    said = str(refused.value)
    assert refused.value.code == ExitCode.DATA and said.startswith("sample ") and "\n" not in said
    assert words in said
