"""What would fail later fails before the first step, and nothing else changes. Most habits of models are in
tests/exactness/zoo; here is what a sanity check itself promises."""

import contextlib
import io
import json

import pytest
import torch
from torch.nn import functional as F

from dist_train.tasks import Task
from tests.distributed.training import result, train, write_configs


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


class Squared(Task):
    """The distance to the class, one-hot."""

    counts_every_sample = True

    def __init__(self, broken: str = "") -> None:
        self._broken = broken

    def loss(self, output, target):
        return F.mse_loss(output, F.one_hot(target, 10).float(), reduction="sum") / 10, len(target)

    def metrics(self, sums):
        if self._broken == "metrics":
            raise ZeroDivisionError("the metrics of this task are broken")
        return super().metrics(sums)


class SavesWhatItCannotLoad(torch.optim.SGD):
    """Momentum in the state, and one more thing that no checkpoint can hold."""

    def __init__(self, groups, lr, kept):
        super().__init__(groups, lr=lr)
        self._kept = kept

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["kept"] = {"set": {1, 2}, "tuple": (1, 2)}[self._kept]
        return super().step(closure)


def _train_and_tell(ranks, folder, run, *overrides):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = train(ranks, folder, "base.yaml", run, *overrides)
    return code, said.getvalue()


TASK = "task={name: 'tests.distributed.test_sanity:Squared'}"
SHORT = ["train.duration=2 steps", "eval.every=2 steps"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_it_changes_nothing(run_ranks, folder, world_size):
    """Dropout, BatchNorm, augmentation, momentum and an average, with the check and without."""
    for value in ("true", "false"):
        overrides = [f"train.sanity_check={value}", "train.ema_decay=0.9", *SHORT]
        assert run_ranks(train, world_size, folder, "base.yaml", value, *overrides) == [0] * world_size
    assert result(folder / "true") == result(folder / "false")


def test_a_metric_that_the_task_does_not_report_is_told_before_the_first_step(run_ranks, folder):
    answers = run_ranks(_train_and_tell, 2, folder, "run", TASK, *SHORT)
    assert [code for code, _ in answers] == [2, 2]
    assert answers[0][1] == "eval.best is accuracy, which the task does not report; it reports loss\n"
    assert not (folder / "run").exists()


def test_with_the_right_metric_it_trains(run_ranks, folder):
    assert run_ranks(train, 2, folder, "base.yaml", "run", TASK, "eval={best: loss, best_is: min}", *SHORT) == [0, 0]


def test_an_error_in_metrics_is_raised_before_the_first_step(run_ranks, folder):
    task = "task={name: 'tests.distributed.test_sanity:Squared', args: {broken: metrics}}"
    with pytest.raises(AssertionError, match="the metrics of this task are broken"):
        run_ranks(train, 1, folder, "base.yaml", "run", task, "eval={best: loss, best_is: min}", *SHORT)
    rows = folder / "run" / "metrics.jsonl"
    assert not rows.exists() or "train" not in rows.read_text()


@pytest.mark.parametrize("kept", ["set", "tuple"])
def test_a_state_that_cannot_be_saved_or_comes_back_otherwise_is_told_by_name(run_ranks, folder, kept):
    optimizer = (
        f"optimizer={{name: 'tests.distributed.test_sanity:SavesWhatItCannotLoad', lr: 0.1, args: {{kept: {kept}}}}}"
    )
    code, said = run_ranks(_train_and_tell, 1, folder, "run", optimizer, *SHORT)[0]
    assert code == 2 and said.count("\n") == 1
    assert said.startswith("what SavesWhatItCannotLoad keeps as block1.0.weight/kept cannot be saved without pickle: ")


def test_it_is_done_once_in_the_life_of_a_run(run_ranks, folder):
    """A run that goes on from a checkpoint was tried when it began: an evaluation that would be refused now runs."""
    run_ranks(train, 1, folder, "base.yaml", "run", "train.stop_after=1 steps", *SHORT)
    assert run_ranks(_tries, 2, folder, "run", *SHORT) == [0, 0]
    assert run_ranks(_tries, 2, folder, "new", *SHORT) == [1, 1]


def _tries(ranks, folder, run, *overrides):
    """How often the check was made in a life."""
    from dist_train import worker

    plain, calls = worker.check_sanity, []

    def counted(*arguments):
        calls.append(None)
        return plain(*arguments)

    worker.check_sanity = counted
    assert train(ranks, folder, "base.yaml", run, *overrides) == 0
    return len(calls)


def test_where_it_is_switched_off_the_first_evaluation_tells(run_ranks, folder):
    answers = run_ranks(_train_and_tell, 1, folder, "run", TASK, "train.sanity_check=false", *SHORT)
    assert answers[0][0] == 10 and "eval.best is accuracy, which the task does not report" in answers[0][1]
    assert json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
