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
    answers = run_ranks(_train_and_tell, 2, folder, "run", TASK, "eval.best=accuracy", *SHORT)
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
    wanted = (TASK, "eval.best=accuracy", "train.sanity_check=false")
    answers = run_ranks(_train_and_tell, 1, folder, "run", *wanted, *SHORT)
    assert answers[0][0] == 10 and "eval.best is accuracy, which the task does not report" in answers[0][1]
    assert json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


class TwoViews(torch.utils.data.Dataset):
    """Two views of a sample in training, one in evaluation; its file is opened once in a process."""

    classes = ("0", "1")
    shape = (4,)

    def __init__(self, split):
        self._split, self._file = split, None

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if self._file is None:
            self._file = open(__file__, "rb", buffering=0)  # noqa: SIM115  # read by seek and read, as many formats are
        self._file.seek(index)
        view = torch.full((4,), float(self._file.read(1)[0]) / 255)
        return ((view, view * 2) if self._split == "train" else view), index % 2


class Views(torch.nn.Module):
    def __init__(self, classes, shape):
        super().__init__()
        self.head = torch.nn.Linear(shape[0], classes)

    def forward(self, x):
        if self.training:
            first, second = x
            return self.head(first) + self.head(second)
        return self.head(x)


@pytest.mark.parametrize("exact", ["true", "false"])
def test_what_training_and_evaluation_have_not_in_common_is_no_mistake(run_ranks, folder, exact):
    """Training inputs are not shown to a model in evaluation mode; with loading processes one of them reads the samples
    to try, since a file that is opened before a fork has one place in it for all."""
    own = [f"data={{name: '{__name__}:TwoViews'}}", f"model={{name: '{__name__}:Views'}}", "augment=[]"]
    for world_size in (1, 2):
        overrides = [*own, "batch.global_size=16", f"exact={exact}", "loader.workers=2", *SHORT]
        assert run_ranks(train, world_size, folder, "base.yaml", f"w{world_size}", *overrides) == [0] * world_size
    if exact == "true":
        assert result(folder / "w1") == result(folder / "w2")


class Merging(torch.nn.Linear):
    """Has another weight in evaluation and its own again in training, as LoRA's layers do; to the bit, by halving."""

    def train(self, mode=True):
        if mode != self.training:
            with torch.no_grad():
                self.weight *= 2.0 if mode else 0.5
        return super().train(mode)


class Merges(torch.nn.Module):
    def __init__(self, classes, shape):
        super().__init__()
        self.head = Merging(64, classes)

    def forward(self, images):
        assert self.head.training == self.training
        return self.head(images.flatten(1))


def test_a_model_is_told_of_the_end_of_an_evaluation(run_ranks, folder):
    own = [f"model={{name: '{__name__}:Merges'}}", "augment=[]", "train.duration=4 steps"]
    for world_size, every in ((1, 4), (1, 1), (3, 1)):
        run = f"{world_size} {every}"
        arguments = (folder, "base.yaml", run, f"eval.every={every} steps", *own)
        assert run_ranks(train, world_size, *arguments) == [0] * world_size
    assert result(folder / "1 1") == result(folder / "3 1")
    assert result(folder / "1 1")[0] == result(folder / "1 4")[0], "evaluations leave no trace in the weights"


class Moved(torch.optim.SGD):
    """Keeps a tensor, a number and a pair outside of its state, and every step depends on them."""

    def __init__(self, groups, lr):
        super().__init__(groups, lr=lr)
        self.scale, self.calls = torch.ones(()), 0
        self.param_groups[0]["betas"] = (1.0, 1.0)

    def step(self, closure=None):
        self.calls += 1
        self.scale = self.scale * 0.9
        first, _ = self.param_groups[0]["betas"]
        self.param_groups[0]["betas"] = (first * 0.95, 1.0)
        for group in self.param_groups:
            for parameter in group["params"]:
                with torch.no_grad():
                    norm = torch.dot(parameter.grad.reshape(-1), parameter.grad.reshape(-1)).sqrt() + 1
                    parameter -= group["lr"] * self.scale * first / self.calls * parameter.grad / norm


def test_what_an_optimizer_keeps_outside_of_its_state_survives(run_ranks, folder):
    own = [f"optimizer={{name: '{__name__}:Moved', lr: 0.1}}", "train.duration=5 steps"]
    assert run_ranks(train, 1, folder, "base.yaml", "whole", *own) == [0]
    run_ranks(train, 3, folder, "base.yaml", "pieces", "train.stop_after=2 steps", *own)
    assert run_ranks(train, 2, folder, "base.yaml", "pieces", *own) == [0, 0]
    assert result(folder / "pieces") == result(folder / "whole")


class Histogram(torch.nn.Module):
    """Counts in a buffer which class it says; no floating-point buffer."""

    def __init__(self, classes, shape):
        super().__init__()
        self.head = torch.nn.Linear(64, classes)
        self.register_buffer("said", torch.zeros(classes, dtype=torch.int64))

    def forward(self, images):
        scores = self.head(images.flatten(1))
        if self.training:
            self.said = self.said + torch.bincount(scores.argmax(1), minlength=len(self.said))
        return scores


@pytest.mark.parametrize("exact", ["true", "false"])
def test_a_histogram_counts_every_sample(run_ranks, folder, exact):
    from safetensors.torch import load_file

    own = [f"model={{name: '{__name__}:Histogram'}}", f"exact={exact}", *SHORT]
    assert run_ranks(train, 2, folder, "base.yaml", "run", *own) == [0, 0]
    said = load_file(folder / "run" / "checkpoints" / "step-00000002" / "model.safetensors")["said"]
    assert said.sum() == 2 * 64
