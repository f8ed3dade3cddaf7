"""metrics.jsonl: strict JSON, exact numbers, and the same rows however often the run was interrupted."""

import json
import math
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from dist_train.tracking.jsonl import JsonlFile, JsonlSink, rewind, row_to_json
from dist_train.tracking.tracker import Tracker
from tests.unit.dist_train.tracking.runs import BATCH, EPOCH, TOTAL, config, evaluation_row, facts, told, train_row


def _run(path: Path, first: int = 0, last: int = TOTAL) -> None:
    tracker = Tracker([JsonlSink(path)])
    told(tracker, path.parent, config(), first=first, last=last)
    tracker.close()


def _rows(path: Path) -> list[dict]:
    """Rows without what the clock says."""
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def test_every_step_has_its_row_and_every_number_its_bits(tmp_path: Path) -> None:
    _run(tmp_path / "metrics.jsonl")
    rows = _rows(tmp_path / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    assert train == [{"kind": "train", **train_row(step)} for step in range(1, TOTAL + 1)]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert evaluations == [{"kind": "evaluation", **evaluation_row(step)} for step in range(EPOCH, TOTAL + 1, EPOCH)]


def test_time_is_apart_and_the_speed_is_a_number(tmp_path: Path) -> None:
    _run(tmp_path / "metrics.jsonl")
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["time"]["unix"] > 1.7e9
    assert first["time"]["samples_per_s"] > BATCH


@pytest.mark.parametrize("interrupted_at", [EPOCH + 3, 2 * EPOCH, 2 * EPOCH + 1, TOTAL])
def test_a_resumed_run_leaves_the_same_rows_as_an_uninterrupted_one(tmp_path: Path, interrupted_at: int) -> None:
    _run(tmp_path / "metrics.jsonl")
    whole = _rows(tmp_path / "metrics.jsonl")
    (tmp_path / "again").mkdir()
    path = tmp_path / "again" / "metrics.jsonl"
    _run(path, last=interrupted_at)
    with open(path, "ab") as file:
        file.write(b'{"kind": "train", "step": 3')  # a crash in the middle of a line
    _run(path, first=interrupted_at - 3)
    assert _rows(path) == whole


def test_a_disk_that_refuses_for_a_while_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "text": "x" * 50} for step in range(40)]
    said: list[str] = []
    lines = JsonlFile(path, 0, said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for place, row in enumerate(rows):
            if place == 5:  # refuses in the middle of a line
                resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, hard))
            if place == 30:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            lines.append([row])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    lines.close()
    assert said == [
        "! metrics.jsonl: File too large; its rows are kept until the disk takes them",
        "! metrics.jsonl is written again: no row is missing",
    ]
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_a_resume_that_finds_the_disk_full_keeps_every_row(tmp_path: Path) -> None:
    """Neither the rewind nor the rows need room at once, and what is there is not written anew."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 9)))
    before = path.stat().st_ino
    said: list[str] = []
    lines = JsonlFile(path, 5, said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        lines.append([{"step": 6}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    lines.append([{"step": 7}])
    lines.close()
    assert [row["step"] for row in _rows(path)] == list(range(1, 8)) and path.stat().st_ino == before
    assert len(said) == 2


def test_a_file_whose_folder_is_away_for_a_while_has_every_row_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": 1}\n{"kind": "evaluation", "split": "evaluation", "step": 2}\n')
    lines = JsonlFile(path, 2, print)
    path.parent.rename(tmp_path / "away")
    lines.append([{"step": 3}])
    lines.append([{"kind": "evaluation", "split": "evaluation", "step": 2}])  # the one of the checkpoint, repeated
    (tmp_path / "away").rename(path.parent)
    lines.append([{"step": 4}])
    lines.close()
    assert [row["step"] for row in _rows(path)] == [1, 2, 3, 4]


def test_an_evaluation_that_is_repeated_after_a_resume_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _run(path)
    for _ in range(2):
        tracker = Tracker([JsonlSink(path)])
        tracker.begin(facts(tmp_path, config(), TOTAL))
        tracker.log_evaluation(evaluation_row(TOTAL), None)
        tracker.log_evaluation({**evaluation_row(2 * EPOCH), "split": "test"}, None)  # of the best step
        tracker.close()
    seen = [(row["split"], row["step"]) for row in _rows(path) if row["kind"] == "evaluation"]
    assert seen == [*(("evaluation", step) for step in range(EPOCH, TOTAL + 1, EPOCH)), ("test", 2 * EPOCH)]


def test_a_run_from_the_start_begins_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _run(path, last=7)
    _run(path)
    assert [row["step"] for row in _rows(path) if row["kind"] == "train"] == list(range(1, TOTAL + 1))


def test_kept_lines_are_kept_byte_for_byte_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 1,  "loss":0.1}\n', b"not json\n", b'{"step": 2}\n', b'{"step": 3}\n', b'{"step": 2']
    path.write_bytes(b"".join(lines))
    rewind(path, 2)
    assert path.read_bytes() == lines[0] + lines[2]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_json_has_no_number_for_is_a_string_that_float_reads() -> None:
    row = {"step": 1, "a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": np.float32(0.5), "e": np.arange(3)}
    read = json.loads(row_to_json(row), parse_constant=pytest.fail)
    assert read == {"step": 1, "a": "nan", "b": ["inf", {"c": "-inf"}], "d": 0.5, "e": [0, 1, 2]}
    assert math.isnan(float(read["a"])) and float(read["b"][0]) == math.inf


def test_floats_come_back_bit_for_bit() -> None:
    values = np.random.default_rng(0).bytes(8 * 2000)
    floats = [value for value in np.frombuffer(values, np.float64).tolist() if math.isfinite(value)]
    assert json.loads(row_to_json({"v": floats}))["v"] == floats
