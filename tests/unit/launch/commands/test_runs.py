"""`dist-train runs`: what differs, why it failed, in which order, and that it fits."""

import json
from pathlib import Path

import pytest

from dist_train.config.dump import to_yaml
from dist_train.config.schema import RunConfig
from launch.commands.runs import runs_table
from launch.runs.listing import RunSummary, list_runs, place, with_changes
from launch.runs.watch import watch

REPORT = {"type": "ValueError", "message": "no label 200"}
FAILED = {"outcome": "failed", "cause": {"kind": "exception", "report": REPORT}}


@pytest.fixture
def runs(tmp_path: Path) -> list[RunSummary]:
    for number, (lr, best, seconds) in enumerate([(0.1, 0.9, 100), (0.1, 0.95, 50), (0.3, None, 7)]):
        run = tmp_path / "digits" / f"20261130-02073{number}-gpkv"
        (run / "generations" / "1" / "nodes").mkdir(parents=True)
        content = {"data": {"name": "digits"}, "model": {"name": "mlp"}, "optimizer": {"name": "sgd", "lr": lr}}
        (run / "config.yaml").write_text(to_yaml(RunConfig.model_validate({**content, "seed": number})))
        known = {"best": {"metric": "accuracy", "value": best, "step": 40}} if best else {}
        state = {"status": "done" if best else "running", "step": 40, "total_steps": 112_590, **known}
        (run / "state.json").write_text(json.dumps(state))
        began, ended = {"life": 1, "event": "began", "unix": 1e9}, {"life": 1, "event": "ended", "unix": 1e9 + seconds}
        (run / "lives.jsonl").write_text(f"{json.dumps(began)}\n{json.dumps(ended)}\n")
        if best is None:
            (run / "generations" / "1" / "verdict.json").write_text(json.dumps(FAILED))
    return with_changes(list_runs(tmp_path))


def test_each_run_has_what_differs_from_the_one_before_and_why_it_failed(runs: list[RunSummary]) -> None:
    assert [run.changed for run in runs] == [{}, {"seed": (0, 1)}, {"optimizer.lr": (0.1, 0.3), "seed": (1, 2)}]
    assert [(run.state, run.seconds) for run in runs] == [("done", 100), ("done", 50), ("failed", 7)]
    assert runs[2].why == "exception: ValueError: no label 200"
    whole = runs_table(runs, None)
    for said in ("accuracy 95.0 %", "1 m 40 s", "2001-09-09 01:46:40", runs[0].path, "40/112,590"):
        assert said in whole
    last = ["    optimizer.lr 0.1 → 0.3, seed 1 → 2", "    ✗ exception: ValueError: no label 200"]
    assert whole.splitlines()[-2:] == last


@pytest.mark.parametrize("room", [60, 80, 120])
def test_it_fits_the_terminal_and_cuts_no_figure(runs: list[RunSummary], room: int) -> None:
    lines = runs_table(runs, room).splitlines()
    assert max(map(len, lines)) <= room and len(lines) == 7
    assert "accuracy 90.0 %" in lines[1] and ("40/112,590" in lines[1]) == (room >= 80)


def test_they_are_sorted(runs: list[RunSummary]) -> None:
    def order(key: str) -> list[int]:
        return [runs.index(run) for run in sorted(runs, key=lambda run: place(run, key))]

    assert [order(key) for key in ("start", "name", "duration", "best")] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [1, 0, 2]]


GARBAGE = ["{", "[1]", "null", '{"kind": "train", "step": "x"}', '{"kind": "train", "step": 1, "time": [1]}']
GARBAGE += ['{"kind": "evaluation", "step": 2, "per_class": {"f1": 3}, "accuracy": "nan", "split": 7}']
GARBAGE += ['{"kind": "train", "step": 3, "loss": 1' + 400 * "0" + "}"]
GARBAGE += ['{"kind": "train", "step": 3, "loss": "inf", "lr": {}}']


def test_a_run_that_is_over_is_watched_once_whatever_its_files_hold(runs: list[RunSummary], capsys) -> None:
    folder = Path(runs[2].path)
    (folder / "metrics.jsonl").write_text("\n".join([*GARBAGE, '{"kind": "train", "step": 4, "loss": 0.5}', '{"cut']))
    (folder / "logs").mkdir()
    (folder / "logs" / "rank1.log").write_text("".join(f"line {number} \x1b[2J\n" for number in range(30)))
    assert watch(folder, [1]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "run · mlp · global batch 64" and said[2] == "[rank1]: line 20 \\x1b[2J"
    assert any(" step 4/112,590 epoch 0 loss inf" in line for line in said)
    assert said[-1].startswith("✗ ") and said[-1].endswith("ValueError: no label 200.")
    (folder / "lives.jsonl").write_text(json.dumps({"life": 1, "event": "began", "unix": 1e9}) + "\n")
    (folder / "generations" / "1" / "verdict.json").unlink()
    assert watch(folder, []) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("✗ Died at step 40 of 112,590.")


def test_a_run_that_hung_has_the_step_that_it_reached_and_who_kept_it(runs: list[RunSummary], capsys) -> None:
    """state.json is as old as the last checkpoint; a verdict of a hang has the rank and its line, and no outcome."""
    folder = Path(runs[2].path)
    cause = {"kind": "hang", "rank": 1, "ranks": [1], "why": "pack.py:22 _touch()   self._queue().get()", "line": 22}
    (folder / "generations" / "1" / "verdict.json").write_text(json.dumps({"exit_code": 15, "cause": cause}))
    rows = [{"kind": "train", "step": step, "loss": 0.5, "time": {"unix": 1e9}} for step in range(1, 52)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"kind": "tr')
    hung = list_runs(folder.parents[1])[2]
    assert (hung.step, hung.why) == (51, "hang: rank 1: pack.py:22 _touch()   self._queue().get()".replace("   ", " "))
    assert watch(folder, []) == 0
    said = " ".join(capsys.readouterr().out.splitlines()[-1].split())
    assert " at step 51 of 112,590. It was ended, for no rank went forward: rank 1: pack.py:22 _touch()" in said
