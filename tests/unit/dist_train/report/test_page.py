"""The page of a run, made from whatever lies in its directory."""

import json
import random
import re

import pytest

from dist_train import report
from dist_train.report.facts import gather
from dist_train.report.sentences import headline, sentences
from dist_train.rundir.layout import RunDir
from dist_train.tracking.jsonl import row_to_json

CONFIG = "name: pages\ndata: {name: synthetic}\nmodel: {name: mlp}\n"


def train_row(step, loss):
    time = {"unix": 1e9 + step, "samples_per_s": 32.0}
    position = {"step": step, "epoch": step / 10, "samples_seen": 32 * step}
    return {"kind": "train", **position, "loss": loss, "lr": 0.1, "grad_norm": 1.0, "time": time}


def evaluation_row(step, loss):
    position = {"step": step, "epoch": step / 10, "samples_seen": 32 * step, "split": "evaluation"}
    return {"kind": "evaluation", **position, "loss": loss, "accuracy": 0.5, "time": {"unix": 1e9 + step}}


def write_run(folder, rows, state=None):
    run = RunDir(folder)
    run.config.write_text(CONFIG)
    run.metrics.write_text("".join(f"{row_to_json(row)}\n" for row in rows))
    run.state.write_text(json.dumps(state or {"status": "done", "step": 40, "total_steps": 40}))
    launch = {"life": 1, "event": "began", "nodes": 1, "ranks": 2, "unix": 1e9}
    end = {"life": 1, "event": "ended", "exit_code": 0, "reason": "done", "in_order": True, "unix": 1e9 + 80}
    run.launches.write_text(f"{json.dumps(launch)}\n{json.dumps(end)}\n")
    return folder


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_overfitting_is_said_and_nothing_of_the_kind_otherwise(tmp_path):
    falling = [train_row(step, 2 - step / 25) for step in range(1, 41)]
    worse = [evaluation_row(step, loss) for step, loss in ((10, 1.0), (20, 0.8), (30, 1.0), (40, 1.2))]
    found = " ".join(sentences(gather(write_run(tmp_path, falling + worse))))
    assert "It overfits: since step 20 the evaluation loss has risen by 50 %" in found
    better = [evaluation_row(step, 2 / step) for step in (10, 20, 30, 40)]
    found = " ".join(sentences(gather(write_run(tmp_path, falling + better))))
    assert "overfits" not in found and "0.05 in the last evaluation" in found
    rising = [train_row(step, 1 + step / 25) for step in range(1, 41)]  # it does not learn at all
    assert "overfits" not in " ".join(sentences(gather(write_run(tmp_path, rising + worse))))


def test_the_time_that_went_into_steps_that_count_is_a_share_of_the_wall(tmp_path):
    """40 steps of 32 samples at 32 samples/s in 80 s."""
    found = sentences(gather(write_run(tmp_path, [train_row(step, 1.0) for step in range(1, 41)])))
    assert "1 m 20 s from the first start to the last word; 32 samples/s" in found[-1] and "took 50 %" in found[-1]


@pytest.mark.parametrize(
    ("state", "end", "said"),
    [
        ({"status": "done"}, (0, "done", True), "Done"),
        ({"status": "stopped"}, (130, "SIGINT: saved and stopped", True), "Stopped at step 7 of 9"),
        ({"status": "running"}, (10, "user code", False), "Failed at step 7 of 9"),
        ({"status": "running"}, None, "Running at step 7 of 9"),
        ({"status": "failed"}, None, "Failed at step 7 of 9"),
    ],
)
def test_the_headline_is_how_it_stands(tmp_path, state, end, said):
    write_run(tmp_path, [], {**state, "step": 7, "total_steps": 9})
    rows = [{"life": 1, "event": "began"}]
    rows += [{"life": 1, "event": "ended", "exit_code": end[0], "reason": end[1], "in_order": end[2]}] if end else []
    RunDir(tmp_path).launches.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert headline(gather(tmp_path)) == said


def test_a_hundred_thousand_steps_are_at_most_400_kb_with_every_peak(tmp_path):
    draws = random.Random(0)
    rows = [train_row(step, draws.random()) for step in range(1, 100_001)]
    rows[54_321]["loss"] = 50.0
    rows += [evaluation_row(step, draws.random()) for step in range(0, 100_001, 1000)]
    page = report.write(write_run(tmp_path, rows)).read_text()
    assert len(page.encode()) <= 400_000
    assert 50.0 in data_of(page)["charts"][0]["curves"][0]["y"]


def test_of_more_steps_than_are_read_there_are_still_all_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr("dist_train.report.facts.MOST_READ", 5000)
    rows = []
    for step in range(1, 1001):
        rows.append(train_row(step, 1.0))
        rows += [evaluation_row(step, 1.0)] if step % 100 == 0 else []
    facts = gather(write_run(tmp_path, rows))
    assert len(facts.evaluations["evaluation"]) == 10 and 10 < len(facts.steps.step) < 200


def test_any_file_may_be_missing_or_damaged(tmp_path):
    rows = [train_row(1, 1.0), train_row(2, float("nan")), evaluation_row(2, float("inf"))]
    names = ("config", "environment", "state", "metrics", "launches")
    whole = {name: getattr(RunDir(write_run(tmp_path, rows)), name) for name in names}
    draws = random.Random(0)
    for _ in range(60):
        write_run(tmp_path, rows)
        for path in draws.sample([*whole.values()], 2):
            content = path.read_bytes() if path.exists() else b""
            damage = draws.choice(["gone", "cut", "noise", "nested", "other"])
            if damage == "gone":
                path.unlink(missing_ok=True)
            elif damage == "cut":
                path.write_bytes(content[: draws.randrange(len(content) + 1)])
            elif damage == "noise":
                path.write_bytes(draws.randbytes(200))
            else:
                path.write_text(
                    '[[1], {"a": {}}]' if damage == "nested" else '{"kind": "train", "step": 3, "loss": []}\n'
                )
        page = report.write(tmp_path).read_text()
        assert "</html>" in page and data_of(page)["run"]["run"] == str(tmp_path)


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path):
    before = report.write(write_run(tmp_path, [train_row(1, 1.0)])).read_text()
    with pytest.raises(OSError, match="No such file"):
        report.write(tmp_path, tmp_path / "away/report.html")
    assert RunDir(tmp_path).report.read_text() == before
    assert not [*tmp_path.glob(".tmp*")]
