"""The figures of the built-in tasks are scikit-learn's, and their losses torch's, for any split of the data."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dist_train.errors import UserError
from dist_train.sums import as_row_table
from dist_train.tasks import Rows
from dist_train.tasks.classification import Classification
from dist_train.tasks.language_model import LanguageModel
from dist_train.tasks.multi_label import MultiLabel
from dist_train.tasks.regression import Regression
from dist_train.tasks.segmentation import Segmentation


@pytest.fixture(scope="module")
def reference():
    """scikit-learn's metrics: two seconds of imports, for the one process that runs these tests."""
    from sklearn import metrics

    return metrics


def totals(task, output, target, sizes):
    """Of batches of these sizes, as an evaluation adds them up."""
    found = {}
    for one, two in zip(output.split(sizes), target.split(sizes), strict=True):
        for name, value in task.statistics(one, task.check_targets(two, str)).items():
            new = as_row_table(value.values) if isinstance(value, Rows) else value
            old = found.get(name)
            found[name] = new if old is None else torch.cat([old, new]) if isinstance(value, Rows) else old + new
    return found


def both(task, output, target):
    """Metrics and metrics by class, which are the same however the data is split."""
    whole = totals(task, output, target, [len(output)])
    parts = totals(task, output, target, [1, 4, len(output) - 5])
    found = task.metrics(whole)
    assert found == pytest.approx(task.metrics(parts), rel=1e-12)
    return found, task.per_class(whole)


@pytest.mark.parametrize("seed", range(5))
def test_multi_label(reference, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(40, 4, generator=generator).mul(3).round().div(2)  # with equal scores
    true = (torch.rand(40, 4, generator=generator) < 0.3).long()
    found, by_class = both(MultiLabel(classes=4), scores, true)
    guess = (scores > 0).numpy()
    expected = reference.average_precision_score(true, scores, average=None)
    assert by_class["average_precision"] == pytest.approx(expected, rel=1e-12)
    assert found["mean_average_precision"] == pytest.approx(expected.mean(), rel=1e-12)
    for average, name in (("macro", "f1"), ("micro", "f1_micro")):
        assert found[name] == pytest.approx(reference.f1_score(true, guess, average=average), rel=1e-12)
    assert by_class["f1"] == pytest.approx(reference.f1_score(true, guess, average=None), rel=1e-12)
    assert found["precision"] == pytest.approx(reference.precision_score(true, guess, average="macro"), rel=1e-12)
    assert found["recall"] == pytest.approx(reference.recall_score(true, guess, average="macro"), rel=1e-12)
    assert found["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(scores, true.float()).item())


def test_a_class_without_a_sample_has_no_average_precision():
    true = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 0], [1, 0], [0, 0]])
    found, by_class = both(MultiLabel(classes=2), torch.randn(6, 2), true)
    assert by_class["average_precision"][1] is None
    assert found["mean_average_precision"] == by_class["average_precision"][0]
    found, _ = both(MultiLabel(classes=2), torch.randn(6, 2), torch.zeros(6, 2))
    assert found["mean_average_precision"] == 0


@pytest.mark.parametrize(("shape", "loss"), [((), "mse"), ((3,), "mae"), ((2,), "huber"), ((1,), "smooth_l1")])
def test_regression(reference, shape, loss):
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(30, *shape, generator=generator) * 5 + 1000  # far from zero: two passes are needed
    output = target + torch.randn(30, *shape, generator=generator) * 2
    found, by_output = both(Regression(loss=loss), output, target)
    true, guess = target.double().numpy(), output.double().numpy()
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(true, guess), rel=1e-12)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(true, guess), rel=1e-12)
    assert found["r2"] == pytest.approx(reference.r2_score(true, guess), rel=1e-12)
    if by_output:
        assert by_output["r2"] == pytest.approx(reference.r2_score(true, guess, multioutput="raw_values"), rel=1e-12)
    torchs = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss, "smooth_l1": F.smooth_l1_loss}[loss]
    assert found["loss"] == pytest.approx(torchs(output, target).item(), rel=1e-5)
    assert Regression(loss=loss).loss(output, target).total.item() / 30 == pytest.approx(found["loss"], rel=1e-5)


def test_a_target_that_never_changes_has_the_r2_of_scikit_learn(reference):
    target = torch.ones(6)
    for output in (torch.ones(6), torch.arange(6.0)):
        found, _ = both(Regression(), output, target)
        assert found["r2"] == reference.r2_score(target, output)


def test_outputs_that_would_be_broadcast_are_refused():
    task = Regression()
    assert task.loss(torch.ones(4, 1), torch.zeros(4)).total.item() == 4.0
    with pytest.raises(UserError, match=r"the shape of its target, \[\]; the model gave \[3\]"):
        task.loss(torch.ones(4, 3), torch.zeros(4))
    with pytest.raises(UserError, match=r"regression takes from the model"):
        task.loss(torch.ones(4), torch.zeros(4, 1))


def test_segmentation(reference):
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(7, 4, 5, 6, generator=generator)
    target = torch.randint(0, 3, (7, 5, 6), generator=generator)  # class 3 is only seen
    target[torch.rand(7, 5, 6, generator=generator) < 0.2] = 255
    found, by_class = both(Segmentation(classes=4), scores, target)
    valid = target != 255
    true, guess = target[valid].numpy(), scores.argmax(1)[valid].numpy()
    expected = reference.jaccard_score(true, guess, average=None, labels=range(4))
    assert by_class["iou"] == pytest.approx(expected, rel=1e-12)
    assert found["mean_iou"] == pytest.approx(expected.mean(), rel=1e-12)
    assert found["pixel_accuracy"] == reference.accuracy_score(true, guess)
    assert found["loss"] == pytest.approx(F.cross_entropy(scores, target, ignore_index=255).item(), rel=1e-6)
    loss = Segmentation(classes=4).loss({"out": scores, "aux": scores}, target)
    assert loss.total.item() / int(loss.count) == pytest.approx(1.5 * found["loss"], rel=1e-5)


def test_language_model():
    generator = torch.Generator().manual_seed(3)
    scores, target = torch.randn(6, 9, 5, generator=generator), torch.randint(0, 5, (6, 9), generator=generator)
    target[:, 0] = -100
    task = LanguageModel(vocabulary=5, token_bytes=(1, 1, 2, 3, 4))
    found, _ = both(task, scores, target)
    expected = F.cross_entropy(scores.flatten(0, 1), target.flatten()).item()
    bytes_ = torch.tensor([1, 1, 2, 3, 4])[target[:, 1:]].double().mean().item()
    assert found["loss"] == pytest.approx(expected, rel=1e-6) and found["perplexity"] == math.exp(found["loss"])
    assert found["bits_per_byte"] == pytest.approx(expected / math.log(2) / bytes_, rel=1e-6)
    assert found["accuracy"] == (scores.argmax(2) == target)[:, 1:].double().mean().item()


def test_the_losses_of_a_classification():
    generator = torch.Generator().manual_seed(4)
    scores, target = torch.randn(9, 3, generator=generator), torch.randint(0, 3, (9,), generator=generator)
    hot = F.one_hot(target, 3).float()
    expected = {
        "cross_entropy": F.cross_entropy(scores, target),
        "bce": F.binary_cross_entropy_with_logits(scores, hot),
    }
    for loss, value in expected.items():
        found, _ = both(Classification(classes=3, loss=loss), scores, target)
        assert found["loss"] == pytest.approx(value.item(), rel=1e-6)
    near, _ = both(Classification(classes=3, loss="focal", focal_gamma=0.0), scores, target)
    assert near["loss"] == pytest.approx(expected["cross_entropy"].item(), rel=1e-6)
    probability = scores.softmax(1).gather(1, target[:, None])
    focal = (-((1 - probability) ** 2) * probability.log()).mean().item()
    assert both(Classification(classes=3, loss="focal"), scores, target)[0]["loss"] == pytest.approx(focal, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "target", "said"),
    [
        (MultiLabel(classes=3), torch.zeros(2), "sample 0: the target is float32; multi_label takes a 0 or 1"),
        (MultiLabel(classes=3), torch.tensor([[0, 1, 0], [0, 2, 0]]), "sample 1: the target of class 1 is 2, and must"),
        (Regression(), ["a"], "sample 0: the target is text; regression takes a number"),
        (Regression(), torch.tensor([0.0, math.nan]), "sample 1: the target is nan, which is not finite"),
        (Segmentation(classes=2), torch.zeros(2, 3), r"sample 0: the target is float32 of shape \[3\]; segmentation"),
        (
            Segmentation(classes=2),
            torch.tensor([[[0, 1]], [[1, 2]]]),
            "sample 1: the target of the pixel in row 0, col",
        ),
        (LanguageModel(vocabulary=4), torch.tensor([3, 1]), "sample 0: the target is int64; language_model"),
        (LanguageModel(vocabulary=4), torch.tensor([[3], [4]]), "sample 1: the target at place 0 is 4, and there are"),
    ],
)
def test_targets_are_looked_at_before_anything_is_computed(task, target, said):
    with pytest.raises(UserError, match=said):
        task.check_targets(target, lambda row: f"sample {row}")


def test_what_does_not_fit_the_task_is_told_with_shapes():
    for task, output, target, wanted in (
        (MultiLabel(classes=3), torch.zeros(2, 4), torch.zeros(2, 3), r"\[samples, 3\]"),
        (Segmentation(classes=3), torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 5).long(), r"\[2, 3, 5, 5\]"),
        (LanguageModel(), torch.zeros(2, 3), torch.zeros(2, 3).long(), r"\[2, 3, vocabulary\]"),
    ):
        with pytest.raises(UserError, match=wanted):
            task.loss(output, target)


def test_average_precision_without_a_true_sample_is_no_number():
    from dist_train.tasks.multi_label import average_precision

    assert np.isnan(average_precision(np.zeros(3, dtype=bool), np.arange(3.0)))
