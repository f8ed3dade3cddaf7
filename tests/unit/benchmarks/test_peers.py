"""What `python -m benchmarks.peers` computes of what the sides have told."""

import json
import re
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.models import CONTEXT, VOCABULARY
from benchmarks.peers import events, work
from benchmarks.peers.__main__ import reached, table
from benchmarks.peers.jobs import JOBS, OURS, SCRIPTS, Settings, command, environment, write_tokens
from dist_train.config.source import load
from dist_train.data.datasets import build
from dist_train.optim.optimizer import build_optimizer
from dist_train.optim.schedule import Schedule

EPOCH_S, EVALUATION_S, STEP_S = 4.0, 1.5, 0.05


def told(epochs):
    """Of a training whose steps all take as long, and whose first epoch begins with a start of 3 s."""
    now, step, events = 103.0, 0, [{"event": "began", "rank": 1, "pid": 7, "unix": 100.0}]
    events.append({"event": "built", "numbers": 12, "unix": 100.5})
    for epoch in range(epochs):
        events += [{"event": "step", "step": step + n + 1, "unix": now + (n + 1) * STEP_S} for n in range(0, 80, 10)]
        step, now = step + 80, now + EPOCH_S
        events.append({"event": "trained", "unix": now})
        now += EVALUATION_S
        events.append({"event": "evaluated", "accuracy": 0.1 * epoch, "unix": now})
    return events


@pytest.mark.parametrize(("epochs", "epoch_s"), [(1, EPOCH_S - STEP_S), (3, EPOCH_S)])
def test_a_figure_has_no_start_and_no_evaluation_in_it(epochs, epoch_s):
    found = events.figures(30.0, told(epochs))
    assert found["whole"] == 30.0 and found["numbers"] == 12 and found["accuracy"] == 0.1 * (epochs - 1)
    assert found["step"] == pytest.approx(STEP_S)
    assert found["epoch"] == pytest.approx(epoch_s)
    assert found["evaluation"] == pytest.approx(EVALUATION_S)


def test_rows_that_are_written_together_are_one_event():
    def train(steps, unix):
        return [{"kind": "train", "step": step, "time": {"unix": unix}} for step in steps]

    evaluation = {"kind": "evaluation", "accuracy": 0.5, "time": {"unix": 13.0}}
    found = events.of_metrics([*train(range(1, 11), 10.0), *train((11, 12), 11.0), evaluation, *train((13, 14), 14.0)])
    assert [(one["event"], one["unix"]) for one in found] == [
        *(("step", 10.0), ("step", 11.0), ("trained", 11.0), ("evaluated", 13.0), ("step", 14.0))
    ]
    assert [one["step"] for one in found if one["event"] == "step"] == [10, 12, 14]
    assert events.first_step_after(11.0, found) == 13


@pytest.mark.parametrize("side", [OURS, "plain"])
def test_a_line_that_is_half_written_tells_nothing(side, tmp_path):
    ours = side == OURS
    path = tmp_path / ("run/metrics.jsonl" if ours else "events")
    path.parent.mkdir(exist_ok=True)
    assert events.newest_step(side, tmp_path) == 0
    step, evaluated = ("train", "evaluation") if ours else ("step", "evaluated")
    line = json.dumps({"kind" if ours else "event": step, "step": 40})
    path.write_text(line + "\n" + line.replace("40", "50")[:-1])
    assert events.newest_step(side, tmp_path) == 40
    path.write_text(line + "\n" + line.replace(step, evaluated) + "\n")
    assert events.newest_step(side, tmp_path) == 0


@pytest.fixture
def tokens(tmp_path):
    text = tmp_path / "text.txt"
    letters = [chr(ord("A") + number) for number in range(VOCABULARY)]
    text.write_text("".join(np.random.default_rng(0).choice(letters, 4000)) + "".join(letters))
    return write_tokens(text, tmp_path)


def our_config(job, data):
    words = command(OURS, job, data, data, Settings())
    return load(next(word for word in words if word.endswith(".yaml")), [word for word in words if "=" in word])


def arguments(folder, windows):
    chosen = {"workers": 0, "precision": "fp32", "contiguous": False}
    return Namespace(data=folder, out=folder, windows=windows, photos=0, batch=6, epochs=1, clip=1.0, **chosen)


def test_both_sides_evaluate_the_same_windows(tokens):
    """And the peer's draw theirs from the same text."""
    train, held_out = work.data(arguments(tokens, 50))
    ours = build(our_config(JOBS["text"], tokens).data).evaluation
    assert len(train) == 50 and len(held_out) == len(ours)
    places = list(range(len(ours)))
    both = zip(held_out.__getitems__(places), ours.__getitems__(np.array(places)), strict=True)
    assert all(torch.equal(*pair) for pair in both)
    inputs, targets = train.__getitems__([3, 1])
    assert inputs.shape == targets.shape == (2, CONTEXT) and torch.equal(inputs[:, 1:], targets[:, :-1])


def test_both_sides_have_the_same_optimizer_and_schedule(tokens):
    config, args = our_config(replace(JOBS["text"], steps=400), tokens), arguments(tokens, 4800)
    rates = Schedule.of(config, steps_per_epoch=1000)
    module = work.model(args)
    ours, theirs = build_optimizer(config.optimizer, module), work.optimizer(args, module)
    assert type(ours) is type(theirs) and config.train.clip_norm == args.clip
    for ours_, theirs_ in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert [id(p) for p in ours_["params"]] == [id(p) for p in theirs_["params"]]
        assert all(ours_[key] == theirs_[key] for key in ("weight_decay", "betas", "eps", "fused"))
    schedule = work.schedule(args, theirs, 400)
    for step in range(400):
        assert theirs.param_groups[0]["lr"] == pytest.approx(rates.lr(step))
        theirs.step()
        schedule.step()


def test_another_text_is_refused(tmp_path):
    (tmp_path / "text").write_text("abc")
    with pytest.raises(SystemExit, match="3 different characters"):
        write_tokens(tmp_path / "text", tmp_path)


@pytest.mark.parametrize("side", [OURS, *SCRIPTS])
@pytest.mark.parametrize("name", JOBS)
def test_every_side_does_the_same_work(name, side, tmp_path):
    """Its size is in each command, and restarts are only where ranks are killed."""
    job, settings = JOBS[name], Settings(workers=1, precision="bf16", channels_last=False)
    words = command(side, job, tmp_path, tmp_path, settings)
    assert any(word in words for word in ("bf16", "train.precision=bf16"))
    assert any(word in words for word in ("--contiguous", "model.channels_last=false")) or job.steps
    size = f"batch.global_size={2 * job.batch}" if side == OURS else f"--batch {job.batch}"
    assert size in " ".join(words)
    assert ("--max-restarts" in words) == (name == "kill" and side != "lightning")
    mended = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in environment(side, job)
    assert mended == (name == "kill" and side != OURS)


def test_the_best_peer_is_the_one_that_ours_gains_the_least_on():
    rows = [{"side": side, "whole_ratio": ratio} for side, ratio in (("ours", 1.0), ("a", 0.4), ("b", 0.6), ("c", 0.5))]
    (line,) = reached(replace(JOBS["kill"], aims={"whole": 0.5}), rows)
    assert "0.600 of the best peer, b" in line and line.endswith("not reached")


def test_a_table_has_a_column_for_each_figure_and_ratios_of_peers():
    rows = [
        {"side": OURS, "settings": Settings(), "whole": 6.0, "whole_ratio": 1.0, "starts": 2, "numbers": 12},
        {"side": "plain", "settings": "1 loading", "whole": 12.0, "whole_ratio": 0.5, "starts": 3, "numbers": 12},
    ]
    assert [line.split("  ") for line in map(str.strip, (re.sub(" {2,}", "  ", line) for line in table(rows)))] == [
        ["whole s", "starts"],
        [f"{OURS}, 0 loading, fp32, channels last", "6.00", "2"],
        ["plain, 1 loading", "12.00 (0.500)", "3"],
    ]


def test_ranks_that_are_started_again_are_counted_and_the_first_one_is_killed(tmp_path):
    """Ours, by the files of its generations, and a peer's, by what its ranks have told."""
    began = [{"rank": rank, "pid": 10 * generation + rank} for generation in (1, 2, 3) for rank in (0, 1)]
    for one in began:
        folder = tmp_path / f"run/generations/{one['pid'] // 10}/ranks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{one['rank']}.json").write_text(json.dumps({**one, "host": "node"}))
    step = tmp_path / "run/checkpoints/step-00000010"
    step.mkdir(parents=True)
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, step / "model.safetensors")
    (tmp_path / "run/metrics.jsonl").write_text("")
    (tmp_path / "events").write_text("".join(json.dumps({"event": "began", **one}) + "\n" for one in began))
    for side in (OURS, "plain"):
        told = events.events_of(side, tmp_path)
        assert events.starts(told) == 3
        assert events.process_id(side, tmp_path, rank=1) == 11
    assert [one["numbers"] for one in events.events_of(OURS, tmp_path) if one["event"] == "built"] == [7]
