"""The tracker: no sink's failure reaches the training, only the first rank speaks, speeds are what a clock says."""

import io
import json
import logging
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_train.config.schema import TrackingConfig
from dist_train.config.source import load_plain
from dist_train.errors import UserError
from dist_train.parallel.ranks import Ranks
from dist_train.report.words import telling
from dist_train.rundir.records import Best
from dist_train.tracking.base import Interval, Sink
from dist_train.tracking.console import ConsoleSink
from dist_train.tracking.formatting import summary
from dist_train.tracking.jsonl import JsonlSink
from dist_train.tracking.log_file import LogFileSink
from dist_train.tracking.pace import Pace
from dist_train.tracking.pictures import confusion_picture
from dist_train.tracking.tensorboard import TensorboardSink
from dist_train.tracking.tracker import Tracker, build_tracker
from dist_train.tracking.wandb_sink import WandbSink
from tests.unit.dist_train.tracking.runs import (
    BATCH,
    EPOCH,
    ONE_RANK,
    TOTAL,
    config,
    evaluation_row,
    facts,
    outcome,
    told,
    train_row,
)


class Broken(Sink):
    """A sink as a user might write one: it fails at its second interval."""

    name = "my sink"

    def __init__(self) -> None:
        self.calls = 0

    def log_steps(self, interval: Interval) -> None:
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("the server\nwent away")


NO_TRACKERS = {"every", "samples", "texts", "worst_samples"}
"""Keys of the section that switch no tracker on."""


def test_no_tracker_sees_a_run_with_the_overrides_that_say_so(tmp_path: Path) -> None:
    """As `--fast-dev-run` has them. A new key of the section is a tracker's, and switched off, or joins the table."""
    switched = {word.split("=")[0].split(".")[1] for word in TrackingConfig.none}
    assert switched | NO_TRACKERS == TrackingConfig.model_fields.keys() and not switched & NO_TRACKERS
    shown = config(wandb={"mode": "offline"}, tensorboard=True)
    hidden = load_plain(shown.model_dump(mode="json"), "a config", TrackingConfig.none)
    first, second = (build_tracker(one, ONE_RANK, tmp_path) for one in (shown, hidden))
    assert isinstance(first, Tracker) and isinstance(second, Tracker)
    kinds = [{type(sink) for sink in tracker._sinks} for tracker in (first, second)]
    assert kinds[0] - kinds[1] == {TensorboardSink, WandbSink}


def test_a_failing_sink_is_dropped_with_one_line_and_the_others_go_on(tmp_path: Path, capsys) -> None:
    broken = Broken()
    tracker = Tracker([broken, JsonlSink(tmp_path / "metrics.jsonl"), ConsoleSink()])
    told(tracker, tmp_path, config())
    tracker.finish(outcome(TOTAL, tmp_path))
    said = capsys.readouterr().err
    assert said.count("my sink stopped") == 1
    assert "! my sink stopped: the server went away; training goes on, metrics.jsonl is complete" in said
    assert broken.calls == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == TOTAL + TOTAL // EPOCH


def test_a_file_that_cannot_grow_ends_metrics_jsonl_and_not_the_run(tmp_path: Path) -> None:
    command = 'ulimit -f 4; exec "$0" -m tests.unit.dist_train.tracking.runs "$1"'  # 4 KiB
    done = subprocess.run(["bash", "-c", command, sys.executable, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr.count("! metrics.jsonl: File too large; its rows are kept until the disk takes them") == 1
    assert "! metrics.jsonl stopped: [Errno 27] File too large; training goes on, its last rows are" in done.stderr
    assert "✓ done in 12 s" in done.stderr and done.returncode == 0
    rows = (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(row)["step"] for row in rows][:15] == [*range(1, 11), 10, *range(11, 15)]


def test_other_ranks_say_and_write_nothing(tmp_path: Path, capsys) -> None:
    second = Ranks(rank=1, local_rank=1, world_size=2, local_world_size=2, node=0)
    with build_tracker(config(wandb={"mode": "offline"}), second, tmp_path) as tracker:
        told(tracker, tmp_path, config())
        tracker.note("unheard")
        tracker.finish(outcome(TOTAL, tmp_path))
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_warnings_and_notes_are_in_the_log_and_warnings_not_on_the_console(tmp_path: Path, capsys) -> None:
    tracker = Tracker([LogFileSink(tmp_path / "logs" / "rank0.log"), ConsoleSink()])
    handlers = logging.getLogger().handlers.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        told(tracker, tmp_path, config())
        for _ in range(3):
            warnings.warn("a library is worried", stacklevel=1)
        logging.getLogger("some.library").warning("look here")
        tracker.note("a word to the user")
        tracker.finish(outcome(TOTAL, tmp_path))
    written = (tmp_path / "logs" / "rank0.log").read_text()
    assert written.count("UserWarning: a library is worried") == 1
    assert "look here" in written and "a word to the user" in written
    said = capsys.readouterr().err
    assert "worried" not in said and said.count("a word to the user\n") == 1
    assert logging.getLogger().handlers == handlers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_leaves_out_evaluations_and_the_first_step(tmp_path: Path) -> None:
    clock = Clock()
    pace = Pace(facts(tmp_path, config()), clock)
    clock.now += 30  # compiling
    pace.tick(1)
    assert pace.samples_per_s() is None and pace.seconds_left() is None
    for step in range(2, 6):
        clock.now += 0.5
        pace.tick(step)
    clock.now += 7  # an evaluation
    pace.evaluated()
    assert pace.samples_per_s() == pytest.approx(BATCH / 0.5)
    clock.now += 0.25
    pace.tick(6)
    assert pace.samples_per_s() == pytest.approx(BATCH / 0.25)
    assert pace.samples_per_s() is None  # no step since


def test_time_left_counts_evaluations(tmp_path: Path) -> None:
    clock = Clock()
    pace = Pace(facts(tmp_path, config()), clock)
    for step in range(1, 1 + 5):
        pace.tick(step)
        clock.now += 1
    clock.now += 4
    pace.evaluated()
    assert pace.seconds_left() == pytest.approx((TOTAL - 5) * 9 / 4)


def test_tensorboard_has_the_scalars_by_step_also_over_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((0, 15), (10, TOTAL)):
        tracker = Tracker([TensorboardSink(tmp_path)])
        told(tracker, tmp_path, config(), first=first, last=last)
        tracker.finish(outcome(TOTAL, tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("eval/accuracy")] == [10, 20, 30, 40]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(5, TOTAL + 1, 5))
    assert events.Scalars("time/samples_per_s")[0].value > 0


def test_tensorboard_has_the_confusion_and_the_worst_samples_as_pictures(tmp_path: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (7, 5), (255, 0, 0)).save(tmp_path / "3.png")
    sample = {"index": 3, "name": "<b>", "loss": 2.5, "truth": "cat", "prediction": "dog", "text": None}
    sample |= {"probability": 0.9}
    worst = [sample | {"picture": "3.png"}, sample | {"picture": "away.png"}]
    tracker = Tracker([TensorboardSink(tmp_path / "events")])
    told(tracker, tmp_path, config(), last=EPOCH, worst=worst)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert events.Tags()["images"] == ["eval/confusion_matrix", "eval/worst/1"]
    [event] = events.Images("eval/worst/1")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert (event.step, picture.size, picture.getpixel((0, 0))) == (EPOCH, (7, 5), (255, 0, 0))
    [text] = events.Tensors("eval/worst/2/text_summary")
    said = b"loss: 2.5<br>truth: cat<br>prediction: dog<br>probability: 0.9<br>name: &lt;b&gt;"
    assert text.tensor_proto.string_val[0] == said


def test_what_is_the_accuracy_once_more_is_shown_once() -> None:
    row = {"step": 3, "accuracy": 0.5, "f1_micro": 0.5, "recall_micro": 0.25, "split": "test", "per_class": {}}
    assert telling(row) == {"accuracy": 0.5, "recall_micro": 0.25}
    assert telling({"f1_micro": 0.5}) == {"f1_micro": 0.5}


def test_a_confusion_is_darkest_where_a_row_is_all_in_one_place() -> None:
    picture = confusion_picture(np.array([[4, 0], [1, 1]]), ("cat", "dog"))
    cells = [picture[91 + 40 * row, 91 + 40 * column].tolist() for row in (0, 1) for column in (0, 1)]
    assert cells == [[0, 0, 255], [255, 255, 255], [128, 128, 255], [128, 128, 255]]
    assert confusion_picture(np.eye(60, dtype=int), None).shape == (810, 810, 3)


def test_texts_and_tokens_a_second_reach_every_sink(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = [JsonlSink(tmp_path / "m"), LogFileSink(tmp_path / "log"), TensorboardSink(tmp_path), ConsoleSink()]
    tracker = Tracker(sinks)
    tracker.begin(replace(facts(tmp_path, config()), tokens=8))
    tracker.tick(1)
    tracker.tick(2)
    tracker.log_steps([train_row(1), train_row(2)])
    text = "\nTo <be>\n\x1b[31mor " + 99 * "not "
    tracker.log_evaluation({**evaluation_row(2), "texts": [text]}, None)
    tracker.close()
    assert json.loads((tmp_path / "m").read_text().splitlines()[-1])["texts"] == [text]
    assert f"text 0 of step 2:\n{text}\n" in (tmp_path / "log").read_text()
    shown = capsys.readouterr().err
    [beginning] = [line for line in shown.splitlines() if line.startswith("  text")]
    assert beginning.startswith("  text      To <be> ⏎ \\x1b[31mor not not") and len(beginning) < 120
    found = re.search(r" ([\d,]+) samples/s ([\d,]+) tokens/s", shown.replace(",", ""))
    assert found and int(found[2]) == pytest.approx(8 * int(found[1]), abs=5)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("time/tokens_per_s")[0].value == 8 * events.Scalars("time/samples_per_s")[0].value
    [event] = events.Tensors("texts/0/text_summary")
    assert b"To &lt;be&gt;" in event.tensor_proto.string_val[0]


def test_tensorboard_asked_for_and_not_installed_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from pathlib import Path\n"
        "from tests.unit.dist_train.tracking.runs import ONE_RANK, build_tracker, config\n"
        "build_tracker(config(tensorboard=True), ONE_RANK, Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "UserError: tracking.tensorboard is true" in done.stderr and "dist-train[tensorboard]" in done.stderr
    assert UserError("x").code == 2
    assert list(tmp_path.iterdir()) == []


def test_loss_of_an_interval_is_its_mean(tmp_path: Path, capsys) -> None:
    tracker = Tracker([ConsoleSink()])
    tracker.begin(facts(tmp_path, config()))
    tracker.log_steps([{"step": step, "epoch": 0.1, "samples_seen": 1, "loss": float(step)} for step in (1, 2, 6)])
    tracker.close()
    assert " loss 3\n" in capsys.readouterr().err


def test_metrics_are_written_before_log_steps_returns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = Tracker([JsonlSink(path)])
    told(tracker, tmp_path, config(), last=7)
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 7
    tracker.close()


def test_the_last_line_tells_the_test_split_from_the_evaluation_split(tmp_path: Path) -> None:
    last = outcome(TOTAL, tmp_path)
    best = Best(metric="accuracy", value=0.99, step=2 * EPOCH)
    here = facts(tmp_path, config())
    assert "accuracy 97.6 %  (best accuracy 99.0 %, epoch 2)" in summary(here, replace(last, best=best))[0]
    test = replace(last, best=best, metrics={"split": "test", "accuracy": 0.95})
    assert "test accuracy 95.0 %  (checkpoint of epoch 2, evaluation accuracy 99.0 %)" in summary(here, test)[0]
    text = {"loss": 1.5, "accuracy": 0.5, "perplexity": 4.48}  # what picks the best comes first
    of_loss = replace(last, metrics=text, best=Best(metric="loss", value=1.5, step=TOTAL))
    assert "loss 1.5  (best at epoch 4)   accuracy 50.0 %  perplexity 4.48" in summary(here, of_loss)[0]
    for status, place in (("done", 1), ("stopped", 0)):
        line = summary(here, replace(last, broken=2, status=status))[place]
        assert line.startswith("  broken      2 of 1,437 training samples: others took their place; ")
        assert line.endswith("logs/rank0.log has their names")
    kept = {"read": 3000, "decoded": 1797, "too long": 0, "damaged": 2, "changed": 0}
    assert "  cache       1,797 images decoded, 3,000 read from it, 2 damaged" in summary(
        here, replace(last, cached=kept)
    )
