"""What becomes of a step that is not finite: `train.non_finite`."""

import json
import math

import pytest

from dist_train.checkpoint.store import CheckpointStore, locate
from dist_train.commands.fingerprint import fingerprint
from tests.distributed.training import result, train

CONFIG = """
name: t
data: {{name: "tests.distributed.poisoned:Images", args: {{bad: {bad}}}}}
model: {{name: cnn, width: 4, dropout: 0.1}}
optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}
batch: {{microbatches: 4, global_size: 8}}
train: {{duration: 2 epochs, ema_decay: 0.5, non_finite: {policy}}}
eval: {{every: 8 steps}}
checkpoint: {{every: 3 steps}}
tracking: {{every: 4 steps, samples: true, wandb: {{mode: disabled}}}}
"""
STEPS = 16


@pytest.fixture
def config(tmp_path):
    def write(policy, bad):
        (tmp_path / "c.yaml").write_text(CONFIG.format(policy=policy, bad=bad))
        return tmp_path

    return write


def _samples(run_dir):
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


def _left_out(run_dir):
    return [row["step"] for row in result(run_dir)[1] if row.get("left_out")]


def _steps_with(folder, run_ranks, sample):
    """The steps that see a training sample."""
    run_ranks(train, 1, folder, "c.yaml", "sound", "data.args.bad=[]")
    rows = _samples(folder / "sound")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["step"] for row in rows if any(sample in microbatch for microbatch in row["indices"])]


def test_the_sample_log_has_each_sample_once_an_epoch_on_any_number_of_ranks(run_ranks, config):
    folder = config("stop", [])
    for world_size in (1, 3):
        run_ranks(train, world_size, folder, "c.yaml", f"w{world_size}")
    rows = _samples(folder / "w1")
    assert rows == _samples(folder / "w3")
    for epoch in (rows[:8], rows[8:]):
        assert sorted(i for row in epoch for microbatch in row["indices"] for i in microbatch) == list(range(64))


EVERYWHERE = ((1, 2), (2, 4), (3, 7), (2, 8), (1, 11), (2, 14), (2, 16))


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize(
    "stops", [((1, 4), (3, 8), (2, 14), (1, 16)), pytest.param(EVERYWHERE, marks=pytest.mark.long)], ids=["", "more"]
)
def test_a_step_is_left_out_alike_on_any_number_of_ranks_and_after_any_stop(run_ranks, config, policy, stops):
    folder = config(policy, [13])
    for world_size in (1, 2, 3):
        assert run_ranks(train, world_size, folder, "c.yaml", f"w{world_size}") == [0] * world_size
    expected, samples = result(folder / "w1"), _samples(folder / "w1")
    for world_size in (2, 3):
        assert result(folder / f"w{world_size}") == expected and _samples(folder / f"w{world_size}") == samples
    assert _left_out(folder / "w1") == _steps_with(folder, run_ranks, 13)
    for world_size, stop in stops:
        run_ranks(train, world_size, folder, "c.yaml", "pieces", f"train.stop_after={stop} steps")
    assert result(folder / "pieces") == expected and _samples(folder / "pieces") == samples


def test_what_is_left_out_leaves_no_trace_in_the_weights(run_ranks, config):
    """Skipping every step of the second epoch ends with the weights of the first."""
    folder = config("skip", [])
    run_ranks(train, 2, folder, "c.yaml", "one", "train.duration=3 steps", "checkpoint.every=1 steps")
    bad = [i for microbatch in _samples(folder / "one")[2]["indices"] for i in microbatch][:1]
    run_ranks(train, 2, folder, "c.yaml", "two", "train.duration=3 steps", f"data.args.bad={bad}")
    after_two = fingerprint(locate(folder / "one" / "checkpoints" / "step-00000002", print))
    assert _left_out(folder / "two") == [3] and fingerprint(locate(folder / "two", print)) == after_two


def test_what_a_rollback_needs_is_kept_however_often_the_run_is_stopped_in_between(run_ranks, config):
    folder = config("rollback", [])
    slow = ["checkpoint.every=10 steps", "checkpoint.keep=2"]
    run_ranks(train, 1, folder, "c.yaml", "sound", *slow)
    bad = _samples(folder / "sound")[8]["indices"][0][:1]  # step 9, the first time in its epoch that it comes
    run_ranks(train, 1, folder, "c.yaml", "whole", *slow, f"data.args.bad={bad}")
    for stop in (2, 4, 6, 16):
        run_ranks(train, 1, folder, "c.yaml", "run", *slow, f"train.stop_after={stop} steps", f"data.args.bad={bad}")
    assert 9 in _left_out(folder / "run") and result(folder / "run") == result(folder / "whole")


def test_a_rollback_ends_with_the_weights_of_the_last_checkpoint_that_was_due(run_ranks, config):
    folder = config("rollback", [])
    run_ranks(train, 2, folder, "c.yaml", "sound", "train.duration=5 steps")
    at_three = fingerprint(locate(folder / "sound" / "checkpoints" / "step-00000003", print))
    bad = _samples(folder / "sound")[4]["indices"][2][:1]
    run_ranks(train, 2, folder, "c.yaml", "run", "train.duration=5 steps", f"data.args.bad={bad}")
    assert _left_out(folder / "run") == [5] and fingerprint(locate(folder / "run", print)) == at_three


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_training_that_has_diverged_ends_with_11_on_every_rank_and_saves_nothing_of_it(run_ranks, config, policy):
    folder = config(policy, [13])
    lines = ["optimizer.lr=1e30", "train.duration=6 epochs"]
    assert run_ranks(train, 2, folder, "c.yaml", "run", *lines) == [11, 11]
    for path in CheckpointStore(folder / "run" / "checkpoints").all():
        _assert_finite(path)


def test_an_update_that_leaves_numbers_that_are_not_finite_is_not_saved(run_ranks, config):
    folder = config("stop", [])
    assert run_ranks(train, 2, folder, "c.yaml", "run", "optimizer.lr=1e39", "checkpoint.every=1 steps") == [11, 11]
    assert CheckpointStore(folder / "run" / "checkpoints").all() == []


def test_infinities_that_belong_to_the_model_are_saved(run_ranks, config):
    folder = config("stop", [])
    assert run_ranks(train, 2, folder, "c.yaml", "run", "model={name: 'tests.distributed.poisoned:Masked'}") == [0, 0]


def _assert_finite(path):
    import safetensors.torch

    for file in path.glob("*.safetensors"):
        for name, tensor in safetensors.torch.load(file.read_bytes()).items():
            assert tensor.isfinite().all(), (path.name, name)


def test_stop_writes_down_all_steps_before(run_ranks, config):
    folder = config("stop", [13])
    first = _steps_with(folder, run_ranks, 13)[0]
    assert run_ranks(train, 2, folder, "c.yaml", "run") == [11, 11]
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(1, first + 1))
    assert rows[-1]["loss"] == "nan" and all(math.isfinite(row["loss"]) for row in rows[:-1])
