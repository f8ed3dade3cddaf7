"""examples/spirals.py and configs/own_components.yaml, which show how to bring one's own."""

import pytest
import torch

from dist_train import models, tasks
from dist_train.config.schema import Custom
from dist_train.config.source import load
from dist_train.data import datasets
from dist_train.errors import ExitCode, UserError
from examples.spirals import LargeMargin, Spirals

CONFIG = "configs/own_components.yaml"


def test_the_config_builds_and_learns_something():
    config = load(CONFIG)
    splits = datasets.build(config.data)
    assert splits.classes == ("arm 0", "arm 1", "arm 2") and splits.shape == (2,)
    model = models.build(config.model, shape=splits.shape, classes=len(splits.classes), seed=config.seed)
    task = tasks.build(config.task, splits.classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    samples = [splits.train[index] for index in range(600)]
    points, arms = torch.stack([point for point, _ in samples]), torch.tensor([arm for _, arm in samples])
    before = task.metrics(task.statistics(model(points), arms))
    for _ in range(100):
        optimizer.zero_grad()
        loss, count = task.loss(model(points), arms)
        (loss / count).backward()
        optimizer.step()
    after = task.metrics(task.statistics(model(points), arms))
    assert config.eval.best in after and after["accuracy"] > 0.9
    assert after["loss"] < before["loss"] and after["mean_margin"] > before["mean_margin"]


def test_points_depend_on_split_and_index_alone():
    train, again, evaluation = Spirals("train"), Spirals("train", size=10), Spirals("evaluation", eval_size=10)
    assert (len(train), len(again), len(evaluation)) == (3_000, 10, 10)
    for index in (9, 0, 4):
        assert torch.equal(train[index][0], again[index][0]) and train[index][1] == again[index][1] == index % 3
        assert not torch.equal(train[index][0], evaluation[index][0])
    assert train[0][0].dtype == torch.float32


def test_figures_of_two_batches_are_those_of_one():
    task, output, target = LargeMargin(), torch.randn(10, 3), torch.arange(10) % 3
    one = task.statistics(output, target)
    first, second = task.statistics(output[:4], target[:4]), task.statistics(output[4:], target[4:])
    assert task.metrics({name: first[name] + second[name] for name in one}) == pytest.approx(task.metrics(one))
    with pytest.raises(UserError, match="nothing to evaluate"):
        task.metrics({})


class Thresholds(tasks.Task):
    def __init__(self, trains=True):
        self.thresholds = torch.nn.Parameter(torch.zeros(3), requires_grad=trains)

    def loss(self, output, target):
        return (output - self.thresholds).square().sum(), len(output)


class Critic(Thresholds):
    def __init__(self, trains=True):
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 2)).requires_grad_(trains)


class IsAModule(Thresholds, torch.nn.Module):
    def __init__(self, trains=True):
        torch.nn.Module.__init__(self)
        super().__init__(trains)


@pytest.mark.parametrize(
    ("task", "held"), [(Thresholds, "thresholds"), (Critic, "net.0.weight"), (IsAModule, "thresholds")]
)
def test_a_task_that_would_learn_is_refused(task, held):
    def built(**args):
        return tasks.build(Custom(name=f"{__name__}:{task.__name__}", args=args), None)

    with pytest.raises(UserError, match=f"holds the parameter {held}, which no optimizer sees") as error:
        built()
    assert error.value.code == ExitCode.CONFIG and "\n" not in str(error.value)
    assert isinstance(built(trains=False), task)
