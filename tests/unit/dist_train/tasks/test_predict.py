"""What each task says of a batch, and how it is worded for programs and for people."""

import csv
import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dist_train.commands.answers import Wording, to_csv
from dist_train.data.batch import Microbatch
from dist_train.errors import ExitCode, UserError
from dist_train.tasks import Task
from dist_train.tasks.classification import Classification
from dist_train.tasks.huggingface import HuggingFace
from dist_train.tasks.multi_label import MultiLabel
from dist_train.tasks.regression import Regression
from dist_train.tasks.segmentation import Segmentation

SCORES = torch.tensor([[0.0, 2.0, -1.0], [1.0, 1.0, 0.5]])


def worded(task, output, *, classes=("a", "b", "c"), **more):
    """Rows and lines of what a model gives for two samples."""
    batch = Microbatch(step=0, number=0, indices=torch.arange(2), inputs=torch.zeros(2, 4), targets=None)
    answers = list(Wording(classes=classes, **more).answers(task.predict(lambda inputs: output, batch)))
    return [row for row, _ in answers], [cells for _, cells in answers]


def test_a_class_and_the_likeliest_ones_of_equals_the_first():
    rows, cells = worded(Classification(classes=3), SCORES, top=2)
    assert rows[1]["class"] == "a" and [one["class"] for one in rows[1]["top"]] == ["a", "b"]
    assert rows[0]["probability"] == SCORES.softmax(1)[0, 1].item()
    assert cells[0] == ("b", " 84.4 %", "a", " 11.4 %")
    one, _ = worded(Classification(classes=3, loss="bce"), SCORES)
    assert one[0] == {"class": "b", "probability": SCORES.sigmoid()[0, 1].item()}


def test_every_label_above_a_half():
    rows, cells = worded(MultiLabel(classes=3), SCORES)
    assert list(rows[0]["labels"]) == ["b"] and list(rows[1]["labels"]) == ["a", "b", "c"]
    assert worded(MultiLabel(classes=3), -SCORES.abs())[1] == [("none",), ("none",)]
    assert cells[0] == ("b 88.1 %",)


def test_numbers_have_the_names_of_their_columns():
    assert worded(Regression(), SCORES[:, :1], classes=None)[0] == [{"value": 0.0}, {"value": 1.0}]
    assert worded(Regression(), SCORES[:, 0], classes=None)[0] == [{"value": 0.0}, {"value": 1.0}]
    assert worded(Regression(), SCORES, columns=("x", "y", "z"))[0][0] == {"x": 0.0, "y": 2.0, "z": -1.0}
    assert worded(Regression(), SCORES)[0][1] == {"value_1": 1.0, "value_2": 1.0, "value_3": 0.5}
    assert worded(Regression(), SCORES[:, :, None])[0][1] == {"values": [[1.0], [1.0], [0.5]]}


def test_a_class_for_each_pixel():
    scores = torch.zeros(2, 3, 2, 2)
    scores[0, 2, 0, 0] = 1
    rows, cells = worded(Segmentation(classes=3), {"out": scores})
    assert rows == [{"shares": {"a": 0.75, "c": 0.25}}, {"shares": {"a": 1.0}}]
    assert cells[0] == ("a 75.0 %  c 25.0 %",)


class Own(Task):
    def loss(self, output, target):
        return output.sum(), len(output)


def test_a_task_of_ones_own_says_what_its_model_gives():
    rows, cells = worded(Own(), SCORES)
    assert rows[0] == {"class": "b", "score": 2.0} and cells[0] == ("b", "2.000")
    assert worded(Own(), SCORES, classes=None)[0][0] == {"value_1": 0.0, "value_2": 2.0, "value_3": -1.0}
    with pytest.raises(UserError, match="give the task a method predict") as raised:
        worded(Own(), (SCORES,))
    assert raised.value.code == ExitCode.USER_CODE


class Head(nn.Module):
    """A model of transformers, as the task sees it."""

    def __init__(self, logits, problem_type=None):
        super().__init__()
        self.config, self._logits = SimpleNamespace(problem_type=problem_type), logits

    def forward(self, input_ids, labels=None):
        assert labels is None
        return SimpleNamespace(loss=None, logits=self._logits)


class HeadForCausalLM(Head):
    pass


def test_the_head_of_a_model_of_transformers_says_what_it_is():
    batch = Microbatch(
        step=0, number=0, indices=torch.arange(2), inputs={"input_ids": torch.zeros(2, 4).long()}, targets=None
    )
    heads = {
        "probabilities": Head(SCORES),
        "labels": Head(SCORES, "multi_label_classification"),
        "numbers": Head(SCORES, "regression"),
        "places": Head(torch.zeros(2, 4, 3)),
    }
    for kind, head in heads.items():
        assert HuggingFace().predict(head, batch).kind == kind and not HuggingFace().generates(head)
    assert HuggingFace().predict(Head(SCORES[:, :1]), batch).kind == "numbers"
    assert HuggingFace().predict(heads["places"], batch).values.shape == (2, 4)
    assert HuggingFace().generates(HeadForCausalLM(SCORES))


def test_a_csv_file_has_a_column_for_everything():
    rows = [{"file": "a,b", "labels": {"x": 0.75}}, {"file": "c", "labels": {"y": 1.0}, "top": [{"class": "y"}]}]
    found = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert found[0] == {"file": "a,b", "labels.x": "0.75", "labels.y": "", "top.1.class": ""}
    assert found[1] == {"file": "c", "labels.x": "", "labels.y": "1.0", "top.1.class": "y"}
