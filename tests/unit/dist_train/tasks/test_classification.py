"""Classification: the loss, and figures equal to scikit-learn's however the samples are cut into batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dist_train import tasks
from dist_train.config import schema
from dist_train.config.schema import Classification as Section
from dist_train.config.schema import Custom
from dist_train.errors import ExitCode, UserError
from dist_train.tasks.classification import Classification


def made(n: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that are right now and then; some classes may never be true or never be predicted."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, classes, generator=generator) + F.one_hot(target, classes), target


def summed(
    task: Classification, scores: torch.Tensor, target: torch.Tensor, cuts: list[int]
) -> dict[str, torch.Tensor]:
    parts = zip(scores.tensor_split(cuts), target.tensor_split(cuts), strict=True)
    total: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, value in task.statistics(*part).items():
            total[name] = total[name] + value if name in total else value
    return total


@settings(deadline=None)
@given(st.integers(1, 150), st.integers(2, 12), st.integers(0, 1000), st.data())
def test_figures_are_scikit_learns_for_any_cut(n, classes, seed, data):
    from sklearn import metrics as reference

    scores, target = made(n, classes, seed)
    task = Classification(classes=classes)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    sums = summed(task, scores, target, cuts)
    figures, by_class, guess = task.metrics(sums), task.per_class(sums), scores.argmax(1)
    labels = list(range(classes))
    for average in ("macro", "micro"):
        theirs = reference.precision_recall_fscore_support(
            target, guess, labels=labels, average=average, zero_division=0
        )
        suffix = "" if average == "macro" else "_micro"
        ours = [figures[name + suffix] for name in ("precision", "recall", "f1")]
        assert ours == pytest.approx(list(theirs[:3]), abs=1e-12)
    columns = reference.precision_recall_fscore_support(target, guess, labels=labels, zero_division=0)
    for name, theirs in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert by_class[name] == pytest.approx(theirs.tolist(), abs=1e-12)
    assert figures["accuracy"] == pytest.approx(reference.accuracy_score(target, guess), abs=1e-15)
    assert np.array_equal(task.confusion(sums), reference.confusion_matrix(target, guess, labels=labels))
    # The loss is computed in fp32: its error is some ulps of the scores, whatever is left of them.
    expected = F.cross_entropy(scores.double(), target).item()
    assert figures["loss"] == pytest.approx(expected, abs=1e-6 * max(1.0, scores.abs().max().item()))
    top5 = reference.top_k_accuracy_score(target, scores, k=5, labels=labels) if classes > 5 else 1.0
    assert figures["top5"] == pytest.approx(top5, abs=1e-15)


def test_sums_are_whole_numbers_and_float64():
    sums = Classification(classes=4).statistics(*made(9, 4, 0))
    assert sums.pop("loss").dtype == torch.float64
    assert sums.pop("samples").loss.shape == (9,)
    assert all(value.dtype == torch.int64 for value in sums.values())
    assert int(sums["confusion"].sum()) == int(sums["support"].sum()) == int(sums["count"]) == 9


def test_thousands_of_classes_have_all_figures_but_no_matrix():
    task = Classification(classes=5_000)
    sums = task.statistics(*made(64, 5_000, 0))
    assert max(value.numel() for name, value in sums.items() if name != "samples") == 5_000
    assert task.confusion(sums) is None
    assert 0 < task.metrics(sums)["accuracy"] <= task.metrics(sums)["top5"]


def test_equal_scores_go_to_the_first_class():
    task = Classification(classes=10)
    figures = task.metrics(task.statistics(torch.zeros(10, 10), torch.arange(10)))
    assert (figures["accuracy"], figures["top5"]) == (0.1, 0.5)


def test_nan_is_not_right():
    task = Classification(classes=10)
    scores = torch.full((3, 10), torch.nan)
    assert int(task.statistics(scores, torch.tensor([3, 4, 5]))["top5"]) == 0


def test_half_precision_scores_are_measured_in_float32():
    scores, target = made(32, 5, 1)
    task, half = Classification(classes=5), scores.bfloat16()
    assert torch.equal(task.statistics(half, target)["loss"], task.statistics(half.float(), target)["loss"])
    assert task.loss(half, target)[0].dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_sum_and_the_count(smoothing):
    scores, target = made(12, 5, 2)
    task = Classification(classes=5, label_smoothing=smoothing)
    loss, count = task.loss(scores, target)
    assert (loss / count).item() == pytest.approx(F.cross_entropy(scores, target, label_smoothing=smoothing).item())
    assert count == 12 and task.counts_every_sample
    assert task.statistics(scores, target)["loss"].item() == pytest.approx(12 * F.cross_entropy(scores, target).item())


def test_mixed_targets():
    scores, target = made(8, 5, 3)
    other = target.roll(1)
    mixed = 0.3 * F.one_hot(target, 5).float() + 0.7 * F.one_hot(other, 5).float()
    loss, count = Classification(classes=5).loss(scores, mixed)
    expected = 0.3 * F.cross_entropy(scores, target) + 0.7 * F.cross_entropy(scores, other)
    assert (loss / count).item() == pytest.approx(expected.item(), rel=1e-6)


def test_ignored_targets_count_nowhere():
    scores, target = made(20, 4, 4)
    holes = target.clone()
    holes[::3] = -100
    task, kept = Classification(classes=4, ignore_index=-100), holes != -100
    loss, count = task.loss(scores, holes)
    assert not task.counts_every_sample and int(count) == int(kept.sum())
    assert loss.item() == pytest.approx(F.cross_entropy(scores[kept], target[kept], reduction="sum").item())
    with_holes, without = task.statistics(scores, holes), task.statistics(scores[kept], target[kept])
    assert with_holes.pop("loss").item() == pytest.approx(without.pop("loss").item())
    assert with_holes.pop("samples").loss.isneginf().equal(~kept) and without.pop("samples").loss.isfinite().all()
    assert all(torch.equal(value, without[name]) for name, value in with_holes.items())


@pytest.mark.parametrize("wrong", [-100, -1, 4])
def test_a_target_out_of_range_is_an_error(wrong):
    scores, _ = made(1, 4, 5)
    with pytest.raises(IndexError):
        Classification(classes=4).loss(scores, torch.tensor([wrong]))


@pytest.mark.parametrize("sums", ["none", "all ignored"])
def test_nothing_to_evaluate(sums):
    task = Classification(classes=4, ignore_index=-100)
    empty = {} if sums == "none" else task.statistics(torch.zeros(2, 4), torch.tensor([-100, -100]))
    with pytest.raises(UserError, match="nothing to evaluate") as caught:
        task.metrics(empty)
    assert caught.value.code is ExitCode.DATA


@pytest.mark.parametrize("output", [torch.zeros(2, 3), torch.zeros(2, 4, 1), (torch.zeros(2, 4),)])
def test_an_output_of_another_shape_is_named(output):
    with pytest.raises(UserError, match=r"scores of shape \[samples, 4\] from the model, which gave"):
        Classification(classes=4).loss(output, torch.tensor([0, 1]))


class Squares(tasks.Task):
    """The least that a user has to write."""

    def loss(self, output, target):
        return ((output - target) ** 2).sum(), target.numel()


def test_a_task_of_ones_own_needs_a_loss_alone():
    task = tasks.build(Custom(name=f"{__name__}:Squares"), classes=None)
    sums = task.statistics(torch.ones(3, 2), torch.zeros(3, 2))
    assert sums["loss"].dtype == torch.float64 and sums["count"].dtype == torch.int64
    assert task.metrics(sums) == {"loss": 1.0}
    assert task.per_class(sums) == {} and task.confusion(sums) is None
    with pytest.raises(UserError, match="nothing to evaluate"):
        task.metrics({})


def test_building():
    task = tasks.build(schema.Classification(label_smoothing=0.1), classes=("a", "b", "c"))
    assert isinstance(task, Classification) and task.classes == 3
    with pytest.raises(UserError, match="needs classes; give the data set an attribute"):
        tasks.build(schema.Classification(), classes=None)
    own = Custom(name="dist_train.tasks.classification:Classification", args={"ignore_index": -100})
    built = tasks.build(own, classes=("a", "b", "c"))
    assert isinstance(built, Classification) and built.classes == 3 and not built.counts_every_sample
    with pytest.raises(UserError, match="no dist_train.tasks.Task"):
        tasks.build(Custom(name=f"{__name__}:made", args={"n": 1, "classes": 2, "seed": 0}), classes=None)


# ---------------------------------------------------------------- targets


def checked(targets: object, **options) -> torch.Tensor:
    return Classification(classes=4, **options).check_targets(targets, lambda row: f"sample {row + 10}")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_whole_numbers_of_any_type_are_classes(dtype):
    target = torch.tensor([1, 0, 1]).to(dtype)
    assert torch.equal(checked(target), torch.tensor([1, 0, 1]))


def test_shares_of_the_classes_are_left_as_they_are():
    shares = torch.full((3, 4), 0.25)
    assert checked(shares) is shares


def test_an_ignored_target_is_no_wrong_one():
    target = torch.tensor([1, -100, 3])
    assert torch.equal(checked(target, ignore_index=-100), target)
    with pytest.raises(UserError, match="sample 11: the target is -100, and there are the classes 0 to 3"):
        checked(target)


@pytest.mark.parametrize(
    "target, words",
    [
        (torch.tensor([0, 3, 4]), "sample 12: the target is 4, and there are the classes 0 to 3"),
        (torch.tensor([0, 255, 3], dtype=torch.uint8), "sample 11: the target is 255, and"),
        (torch.tensor([-1, 4]), "sample 10: the target is -1, and"),
        (torch.tensor([1.0, 2.0]), "sample 10: the target is float32; classification takes the number of one class"),
        (torch.tensor([[1], [2]]), r"sample 10: the target is int64 of shape \[1\]; classification takes"),
        (torch.tensor([[0.5], [2]]), r"sample 10: the target is float32 of shape \[1\]; classification takes"),
        (["cat", "dog"], "sample 10: the target is text; classification takes"),
        ({"class": torch.tensor([1])}, "sample 10: the target is a dict; classification takes"),
    ],
)
def test_what_is_no_class_is_refused_by_the_samples_name(target, words):
    with pytest.raises(UserError, match=words) as error:
        checked(target)
    assert error.value.code == ExitCode.DATA


def test_the_config_knows_what_is_reported():
    scores, target = made(20, 3, 0)
    found = Classification(classes=3).metrics(summed(Classification(classes=3), scores, target, []))
    assert set(found) == set(Section.reports)


def test_shares_of_the_classes_have_no_figures():
    with pytest.raises(UserError, match=r"one class for each sample, and the targets have the shape \[3, 4\]") as error:
        Classification(classes=4).statistics(torch.zeros(3, 4), torch.full((3, 4), 0.25))
    assert error.value.code == ExitCode.DATA
