"""A recorded step computed again: the same bits on any number of ranks, or the first value that is not the same."""

import contextlib
import hashlib
import io
import json
import re
import shutil

import pytest

from dist_train.checkpoint.store import CheckpointStore, read_checked, verify
from dist_train.errors import ExitCode, UserError
from tests.distributed.training import result, train, write_configs

OVERRIDES = ["checkpoint.every=4 steps", "checkpoint.keep=9", "train.duration=12 steps", "eval.every=8 steps"]
OVERRIDES += ["train.clip_norm=0.3"]


@pytest.fixture(scope="module")
def folder(run_ranks, tmp_path_factory):
    """`run`: 12 steps on 8 ranks, with convolution, BatchNorm, dropout, augmentation and clipping. Left as it is."""
    folder = tmp_path_factory.mktemp("replay")
    write_configs(folder)
    assert run_ranks(train, 8, folder, "base.yaml", "run", *OVERRIDES) == [0] * 8
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """The run to be tampered with."""
    return shutil.copytree(folder / "run", tmp_path / "run")


def replay(ranks, run_dir, first, last, *flags):
    """Exit code, stdout and stderr of a replay on this rank."""
    from dist_train.commands.replay import main
    from dist_train.config.requests import ReplayRequest

    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            code = main(ReplayRequest(run=str(run_dir), from_step=first, to_step=last, **dict.fromkeys(flags, True)))
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), said.getvalue()


def replayed(run_ranks, world_size, run_dir, first, last, *flags):
    """Exit code, what it says as JSON, and the lines beside it."""
    code, out, said = run_ranks(replay, world_size, run_dir, first, last, "as_json", *flags)[0]
    return code, json.loads(out), said


def contents(folder):
    """SHA-256 and time of change of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(
    ("world_size", "first", "last", "begin", "steps", "evaluations"),
    [(1, 1, 12, 0, 12, 2), (1, 2, 3, 0, 3, 0), (1, 5, 5, 4, 1, 0), (3, 7, 10, 4, 6, 1), (1, 9, 12, 8, 4, 1)],
)
def test_any_window_of_an_8_rank_run_comes_out_again(
    run_ranks, folder, world_size, first, last, begin, steps, evaluations
):
    before = contents(folder / "run")
    code, told, said = replayed(run_ranks, world_size, folder / "run", first, last)
    assert (code, told["identical"], told["first_difference"]) == (0, True, None)
    assert told["replayed_from_step"] == begin and told["ranks"] == world_size
    compared = told["compared"]
    assert (compared["steps"], compared["evaluations"]) == (steps, evaluations)
    assert compared["values"] == 3 * steps + evaluations * compared_of_an_evaluation(folder / "run")
    assert contents(folder / "run") == before
    assert f"on {world_size} rank" in said


def compared_of_an_evaluation(run_dir):
    row = next(row for row in result(run_dir)[1] if row["kind"] == "evaluation")
    per_class = sum(len(values) if isinstance(values, list) else 1 for values in row.pop("per_class").values())
    return len(row) - len(("kind", "split", "step", "epoch", "samples_seen")) + per_class


def test_the_verdict_in_words(run_ranks, folder):
    code, out, said = run_ranks(replay, 1, folder / "run", 6, 7)[0]
    assert code == 0
    assert re.fullmatch(r"bit-identical: steps 5 to 7 \(loss, lr, grad_norm\), 9 values, on 1 rank\n", out)
    assert said.endswith("replaying from step-00000004 on 1 rank\n")
    code, out, _ = run_ranks(replay, 1, folder / "run", 7, 8)[0]
    assert "steps 5 to 8 (loss, lr, grad_norm) and 1 evaluation, " in out


def rewritten(run_dir, step, change, **facts):
    """Writes a checkpoint anew, sound by all its hashes: its weights go through `change`."""
    path = CheckpointStore(run_dir / "checkpoints").path(step)
    manifest = verify(path)
    files = {name: read_checked(path, name, manifest) for name in manifest["files"]}
    model = bytearray(files["model.safetensors"])
    change(model)
    shutil.rmtree(path)
    others = {name: value for name, value in manifest.items() if name not in ("files", "sha256", "format", "step")}
    files["model.safetensors"] = bytes(model)
    CheckpointStore(path.parent).save(step, files, {**others, **facts})
    verify(path)


def flip_a_bit(model):
    """Of the mantissa of the last parameter's last number."""
    model[-2] ^= 0x10


@pytest.mark.parametrize("world_size", [1, 2])
def test_one_flipped_bit_is_found_at_the_first_step_that_it_reaches(run_ranks, copy, world_size):
    rewritten(copy, 4, flip_a_bit)
    code, told, _ = replayed(run_ranks, world_size, copy, 7, 12)
    difference = told["first_difference"]
    assert (code, told["identical"], difference["step"]) == (1, False, 5)
    recorded = {row["step"]: row for row in result(copy)[1] if row["kind"] == "train"}[5][difference["quantity"]]
    assert difference["recorded"] == recorded == float.fromhex(difference["recorded_hex"])
    assert difference["replayed"] == float.fromhex(difference["replayed_hex"]) != recorded
    assert told["compared"]["steps"] < 8  # it ends soon after
    _, out, _ = run_ranks(replay, world_size, copy, 7, 12)[0]
    assert f"step 5: {difference['quantity']} was {recorded!r} ({recorded.hex()}) and came out as" in out
    assert "before step 7: on the way there from step-00000004" in out
    assert replayed(run_ranks, world_size, copy, 9, 12)[0] == 0  # from the next checkpoint on all is well


def test_a_changed_learning_rate_is_named_with_its_step(run_ranks, copy):
    config = copy / "config.yaml"
    config.write_text(re.sub(r"(?m)^  lr: 0.1$", "  lr: 0.1000001", config.read_text()))
    code, told, _ = replayed(run_ranks, 1, copy, 10, 12)
    assert code == 1 and told["first_difference"]["quantity"] == "lr"
    assert told["first_difference"]["step"] == 9


def test_a_recorded_value_that_differs_in_its_last_bit_is_seen_in_an_evaluation_too(run_ranks, copy):
    import math

    lines = (copy / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    row = next(row for row in rows if row["kind"] == "evaluation" and row["step"] == 12)
    row["per_class"]["f1"][3] = math.nextafter(row["per_class"]["f1"][3], 2.0)
    _write(copy / "metrics.jsonl", rows)
    code, told, _ = replayed(run_ranks, 1, copy, 9, 12)
    difference = told["first_difference"]
    assert code == 1 and told["compared"]["evaluations"] == 1
    assert (difference["step"], difference["split"], difference["quantity"]) == (12, "evaluation", "per_class.f1[3]")


def test_a_run_that_was_stopped_and_resumed_comes_out_again(run_ranks, folder, tmp_path):
    write_configs(tmp_path)
    run_ranks(train, 2, tmp_path, "base.yaml", "run", *OVERRIDES, "train.stop_after=6 steps")
    run_ranks(train, 3, tmp_path, "base.yaml", "run", *OVERRIDES)
    assert result(tmp_path / "run")[1] == result(folder / "run")[1]
    for first, begin in ((3, 0), (7, 6)):
        code, told, _ = replayed(run_ranks, 1, tmp_path / "run", first, 12)
        assert (code, told["identical"], told["replayed_from_step"]) == (0, True, begin)


def test_averaged_weights_clipping_and_bf16(run_ranks, tmp_path):
    write_configs(tmp_path)
    run_ranks(train, 2, tmp_path, "adam.yaml", "run", *OVERRIDES, "train.precision=bf16")
    code, told, _ = replayed(run_ranks, 3, tmp_path / "run", 6, 12)
    assert (code, told["identical"], told["replayed_from_step"], told["compared"]["evaluations"]) == (0, True, 4, 2)


def test_a_damaged_checkpoint_is_passed_over_with_a_line(run_ranks, copy):
    weights = CheckpointStore(copy / "checkpoints").path(8) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, told, said = replayed(run_ranks, 2, copy, 9, 10)
    assert (code, told["identical"], told["replayed_from_step"]) == (0, True, 4)
    line = "step-00000008 is damaged (model.safetensors: sha256 differs): beginning from an older one"
    assert told["notes"][0] == line and line in said


def _taken_away(ranks, run_dir):
    """A checkpoint that a live run's retention removes between the look at it and the reading of it."""
    from dist_train.checkpoint.store import CheckpointStore
    from dist_train.commands.replay import _broadcast
    from dist_train.config.schema import DistributedConfig
    from dist_train.parallel.process_group import ProcessGroup

    found, _ = CheckpointStore(run_dir / "checkpoints").newest_sound(lambda step: step < 9)
    shutil.rmtree(found.path)
    with ProcessGroup(ranks, DistributedConfig()) as group:
        try:
            _broadcast(found, group)
        except UserError as error:
            return str(error), error.code


def test_a_checkpoint_that_goes_away_while_it_is_read_is_one_line(run_ranks, copy):
    message, code = run_ranks(_taken_away, 1, copy)[0]
    assert message.startswith("step-00000008 went away while it was read") and code == ExitCode.CANNOT_RESUME


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (5, 4, "steps are counted from 1, and this run has 12"),
        (0, 4, "steps are counted from 1, and this run has 12"),
        (5, 13, "steps are counted from 1, and this run has 12"),
        (5, 12, "step 11 is not recorded; metrics.jsonl holds steps 1 to 10"),
    ],
)
def test_a_window_that_is_not_there_is_one_line_that_says_what_is(run_ranks, copy, first, last, words):
    rows = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    kept = [row for row in rows if json.loads(row)["step"] <= 10]
    (copy / "metrics.jsonl").write_bytes(b"".join(kept) + b'{"kind": "train", "st')  # the next one is being written
    for code, out, said in run_ranks(replay, 2, copy, first, last):
        assert (code, out) == (2, "") and words in said and said.count("\n") == 1


def test_more_ranks_than_microbatches_are_refused(run_ranks, folder):
    code, _, said = run_ranks(replay, 9, folder / "run", 1, 2)[0]
    assert code == 2 and "start at most 8 ranks" in said


def test_what_has_changed_since_is_said(run_ranks, copy):
    rewritten(copy, 8, lambda model: None, torch="1.0")
    config = copy / "config.yaml"
    config.write_text(re.sub(r"(?m)^  momentum: 0.9$", "  momentum: 0.8", config.read_text()))
    code, told, said = replayed(run_ranks, 1, copy, 9, 10)
    assert code == 1 and told["first_difference"]["step"] == 10
    assert any(re.match("torch has changed since step-00000008 was written .*was 1.0", line) for line in told["notes"])
    assert "optimizer.momentum was 0.9 when step-00000008 was written, and is 0.8 in config.yaml" in told["notes"]
    assert all(note in said for note in told["notes"])


# ---------------------------------------------------------------- --show


def test_show_takes_each_step_apart_the_same_on_any_number_of_ranks(run_ranks, folder):
    (_, alone, _), (_, three, _) = (replayed(run_ranks, n, folder / "run", 6, 7, "show") for n in (1, 3))
    assert alone["identical"] and alone["steps"] == three["steps"]
    rows = {row["step"]: row for row in result(folder / "run")[1] if row["kind"] == "train"}
    assert [step["step"] for step in alone["steps"]] == [6, 7]
    for step in alone["steps"]:
        assert step["gradient_norm"] == rows[step["step"]]["grad_norm"]
        losses = [part["loss"] for part in step["microbatches"]]
        assert sum(losses) / 8 == pytest.approx(rows[step["step"]]["loss"], rel=1e-12)
        samples = [place for part in step["microbatches"] for place in part["indices"]]
        assert len(set(samples)) == 64
        largest = list(step["largest_gradients"].values())
        assert len(largest) == 5 and largest == sorted(largest, reverse=True)
        assert max(largest) < step["gradient_norm"] > 0.3  # before clipping, both
        assert step["gradient_norm"] < sum(value**2 for value in largest) ** 0.5 * 2
    code, out, _ = run_ranks(replay, 2, folder / "run", 6, 7, "show")[0]
    part = alone["steps"][0]["microbatches"][3]
    assert code == 0 and "bit-identical" in out
    assert f"  microbatch 3  loss {part['loss']:.6g}  samples {' '.join(map(str, part['indices']))}\n" in out


def test_show_goes_on_after_a_difference_and_beyond_the_record(run_ranks, copy):
    rewritten(copy, 4, flip_a_bit)
    rows = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_bytes(b"".join(row for row in rows if json.loads(row)["step"] <= 10))
    code, told, _ = replayed(run_ranks, 2, copy, 5, 8, "show")
    assert code == 1 and [step["step"] for step in told["steps"]] == [5, 6, 7, 8]
    code, told, _ = replayed(run_ranks, 2, copy, 10, 12, "show")
    assert (code, told["compared"]["steps"], [step["step"] for step in told["steps"]]) == (0, 2, [10, 11, 12])
    assert told["identical"] and told["not_recorded"] == [11, 12]
    (copy / "metrics.jsonl").write_bytes(b"".join(row for row in rows if json.loads(row)["step"] <= 8))
    code, out, _ = run_ranks(replay, 1, copy, 9, 10, "show")[0]
    assert code == 0 and out.endswith("nothing to compare: none of these steps is recorded\n")


# ---------------------------------------------------------------- what is not finite

POISONED = """
name: t
data: {{name: "tests.distributed.poisoned:Images", args: {{bad: [13]}}}}
model: {{name: cnn, width: 4, dropout: 0.1}}
optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}
batch: {{microbatches: 4, global_size: 8}}
train: {{duration: 2 epochs, ema_decay: 0.5, non_finite: {policy}}}
eval: {{every: 8 steps}}
checkpoint: {{every: 3 steps, keep: 9}}
tracking: {{samples: true, wandb: {{mode: disabled}}}}
"""


@pytest.mark.parametrize(("policy", "begin"), [("skip", 7), ("rollback", 6)])
def test_steps_that_were_left_out_are_left_out_again(run_ranks, tmp_path, policy, begin):
    """Also where the checkpoints that a rollback went back to are gone."""
    (tmp_path / "c.yaml").write_text(POISONED.format(policy=policy))
    for stop in (7, 16):
        run_ranks(train, 2, tmp_path, "c.yaml", "run", f"train.stop_after={stop} steps")
    run_dir = tmp_path / "run"
    left_out = [row["step"] for row in result(run_dir)[1] if row.get("left_out")]
    assert left_out and left_out[0] > 1
    code, told, _ = replayed(run_ranks, 3, run_dir, 8, 16)
    assert (code, told["identical"], told["replayed_from_step"]) == (0, True, begin)
    shutil.rmtree(run_dir / "checkpoints")
    code, told, _ = replayed(run_ranks, 1, run_dir, 1, 16)
    assert (code, told["identical"], told["replayed_from_step"]) == (0, True, 0)
    assert told["compared"]["steps"] == 16
    lines = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text(lines.replace(', "left_out": true', "", 1))
    code, told, _ = replayed(run_ranks, 1, run_dir, 1, 16)
    difference = told["first_difference"]
    assert (code, difference["step"], difference["quantity"]) == (1, left_out[0], "left_out")


def test_show_finds_the_microbatch_and_the_sample_that_ended_a_run(run_ranks, tmp_path):
    (tmp_path / "c.yaml").write_text(POISONED.format(policy="stop"))
    assert run_ranks(train, 2, tmp_path, "c.yaml", "run") == [11, 11]
    row = rows_of(tmp_path / "run")[-1]
    last = row["step"]
    assert row["loss"] == "nan" and last > 2
    code, told, _ = replayed(run_ranks, 1, tmp_path / "run", last - 1, last, "show")
    assert (code, told["identical"]) == (0, True)  # a nan that comes out again is the same
    assert f"step {last}: the loss of microbatch" in told["ended"]
    good, bad = told["steps"]
    (culprit,) = [part for part in bad["microbatches"] if part["loss"] == "nan"]
    assert 13 in culprit["indices"] and good["step"] == last - 1
    assert "nan" in bad["largest_gradients"].values()


def test_what_is_not_finite_in_the_replay_alone_is_a_difference(run_ranks, tmp_path):
    (tmp_path / "c.yaml").write_text(POISONED.format(policy="stop"))
    run_ranks(train, 2, tmp_path, "c.yaml", "run")
    *before, row = rows_of(tmp_path / "run")
    last, metrics = row["step"], tmp_path / "run" / "metrics.jsonl"
    code, _, said = run_ranks(replay, 1, tmp_path / "run", last, last + 1)[0]
    assert code == 2 and f"step {last + 1} is not recorded; metrics.jsonl holds steps 1 to {last}" in said
    _write(metrics, [*before, row, {**row, "step": last + 1}])
    code, out, _ = run_ranks(replay, 1, tmp_path / "run", last, last + 1)[0]
    assert code == 1 and f"not bit-identical: step {last + 1} was recorded and did not come out" in out
    _write(metrics, [*before, {**row, "loss": 1.5}])
    code, out, _ = run_ranks(replay, 1, tmp_path / "run", last, last)[0]
    assert code == 1 and f"step {last}: loss was 1.5 (0x1.8000000000000p+0) and came out as nan\n" in out


def _write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
