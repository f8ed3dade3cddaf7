"""W&B: an offline run reads back and stays one run over a resume; neither its server nor its process holds us up."""

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dist_train.tracking import wandb
from dist_train.tracking.tracker import build_tracker
from dist_train.tracking.wandb_sink import LOCAL_TIMEOUT_S, _begin, run_id, wandb_mode
from tests.unit.dist_train.tracking.runs import (
    EPOCH,
    EVERY,
    ONE_RANK,
    TOTAL,
    config,
    evaluation_row,
    facts,
    outcome,
    told,
    train_row,
)

ROOT = Path(__file__).parents[4]
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever credentials and settings this machine has, a test must not use them."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers: the worst that a network can do."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _run(run_dir: Path, mode: str, *, first: int = 0, last: int = TOTAL, status: str = "done") -> None:
    run_dir.mkdir(exist_ok=True)
    chosen = config(wandb={"mode": mode, "group": "a group", "tags": ["one", "two"]})
    with build_tracker(chosen, ONE_RANK, run_dir) as tracker:
        told(tracker, run_dir, chosen, first=first, last=last)
        tracker.finish(outcome(last, run_dir, status))


def _files(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def _inspected(file: Path) -> list[dict]:
    """The records of a run's file, as W&B's own program reads them."""
    inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", str(file), "--json"]
    return [json.loads(line) for line in subprocess.check_output(inspect, text=True).splitlines()]


def _history(records: list[dict]) -> list[dict]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def _summaries(run_dir: Path) -> list[dict]:
    """Of each life, wandb's own summary of its file."""
    summary = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", "--summary"]
    return [json.loads(subprocess.check_output([*summary, str(file)])) for file in _files(run_dir)]


def _read(run_dir: Path) -> list[tuple[dict, list[dict]]]:
    """Of each life: the summary, and the history's rows."""
    histories = [_history(_inspected(file)) for file in _files(run_dir)]
    return list(zip(_summaries(run_dir), histories, strict=True))


def test_an_offline_run_reads_back_on_our_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "run", "auto")
    [whole], [file] = _summaries(tmp_path / "run"), _files(tmp_path / "run")
    records = _inspected(file)
    history, metrics = _history(records), [record["metric"] for record in records if record["type"] == "metric"]
    assert {metric.get("glob_name"): metric.get("step_metric") for metric in metrics}["*"] == "train/step"
    losses = {row["train/step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert list(losses) == list(range(EVERY, TOTAL + 1, EVERY))
    mean = sum(train_row(step)["loss"] for step in range(1, EVERY + 1)) / EVERY
    assert losses[EVERY] == pytest.approx(mean, rel=1e-12)
    evaluations = {row["train/step"]: row["eval/accuracy"] for row in history if "eval/accuracy" in row}
    assert evaluations == {step: evaluation_row(step)["accuracy"] for step in range(EPOCH, TOTAL + 1, EPOCH)}
    assert all(row["time/samples_per_s"] > 0 for row in history if "train/loss" in row)
    assert whole["state"] == "finished" and whole["exit_code"] == 0
    assert (whole["name"], whole["project"], whole["tags"]) == ("demo-run", "dist-train", ["one", "two"])
    assert whole["config"]["batch"]["global_size"] == 32 and whole["config"]["facts"]["world_size"] == 2
    assert whole["summary"]["best/accuracy"] == whole["summary"]["final/accuracy"] == TOTAL / (TOTAL + 1)
    table = next((tmp_path / "run" / "wandb").rglob("confusion_matrix*.table.json"))
    assert ["3", "3", 3] in json.loads(table.read_text())["data"]
    [line] = [line for line in capsys.readouterr().err.splitlines() if "wandb sync" in line]
    assert re.fullmatch(r"wandb  offline; to upload: wandb sync \S*/run/wandb/offline-run-\S+", line)


def test_tables_pictures_log_code_and_checkpoints_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What W&B has panels for besides curves."""
    run_dir = tmp_path / "run"
    saved = run_dir / "checkpoints" / "step-00000010"
    saved.mkdir(parents=True)
    (saved / "model.safetensors").write_bytes(b"weights")
    (run_dir / "config.yaml").write_text("name: demo")
    (tmp_path / "mine.py").write_text("loaded = True")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("mine")
    Image.new("RGB", (7, 5)).save(run_dir / "3.png")
    sample = {
        "index": 3,
        "name": "three",
        "loss": 2.5,
        "truth": "3",
        "prediction": "8",
        "probability": 0.9,
        "text": None,
    }
    worst = [sample | {"picture": "3.png"}, sample | {"picture": None}]
    chosen = config(
        wandb={"mode": "offline", "artifacts": "best", "notes": "a note", "job_type": "a job", "name": "a name"}
    )
    with build_tracker(chosen, ONE_RANK, run_dir) as tracker:
        told(tracker, run_dir, chosen, last=EPOCH, worst=worst)
        tracker.log_checkpoint(saved, {"step": 10, "accuracy": 0.9}, is_best=True)
        tracker.log_checkpoint(run_dir / "checkpoints" / "step-00000011", {"step": 11}, is_best=True)  # gone meanwhile
        tracker.log_checkpoint(saved, {"step": 12}, is_best=False)
        tracker.finish(outcome(EPOCH, run_dir))
    [file] = _files(run_dir)
    records = _inspected(file)
    kept = [record["artifact"] for record in records if record["type"] == "artifact"]
    files = {found["path"]: found["local_path"] for one in kept for found in one["manifest"]["contents"]}
    per_class = json.loads(Path(files["eval/per_class_table.table.json"]).read_text())
    assert per_class["columns"] == ["class", "f1"] and per_class["data"][0] == ["0", EPOCH / (EPOCH + 1)]
    shown = json.loads(Path(files["eval/worst.table.json"]).read_text())
    assert shown["columns"] == ["picture", "name", "truth", "prediction", "probability", "loss", "text", "index"]
    (picture, *row), other = shown["data"]
    assert row == ["three", "3", "8", 0.9, 2.5, None, 3] and other[0] is None
    assert picture["_type"] == "image-file" and Image.open(files[picture["path"]]).size == (7, 5)
    log = "".join(record["output_logger"]["line"] for record in records if record["type"] == "output_logger")
    assert "demo, generation 0, 2 ranks, from step 0" in log
    names = [found["path"] for one in kept if one["type"] == "code" for found in one["manifest"]["contents"]]
    assert {"config.yaml", "mine.py"} <= {*names} and not any("site-packages" in name for name in names)
    models = [one for one in kept if one["type"] == "model"]
    assert [sorted(model["aliases"]) for model in models] == [["best", "latest", "step-10"]]
    [weights] = models[0]["manifest"]["contents"]
    assert weights["path"] == "model.safetensors" and Path(weights["local_path"]).read_bytes() == b"weights"
    assert Path(weights["local_path"]).is_relative_to(run_dir)  # where `wandb sync` finds it
    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["notes"], run["job_type"], run["display_name"]) == ("a note", "a job", "a name")


@pytest.mark.parametrize("mode", ["offline", "auto"])
def test_a_process_that_is_slow_to_open_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """It has not even imported wandb when the training is over and all patience for a server is used up."""
    monkeypatch.setattr("dist_train.tracking.wandb_sink.SILENT_S", 0.01)
    monkeypatch.setattr("dist_train.tracking.wandb_sink.OPEN_TIMEOUT_S", 0.02)
    _run(tmp_path / "run", mode, status="stopped")
    [(whole, history)] = _read(tmp_path / "run")
    assert [row["train/step"] for row in history if "train/loss" in row] == list(range(EVERY, TOTAL + 1, EVERY))
    assert whole["exit_code"] == 0 and whole["summary"]["status"] == "stopped"


THEIRS = {
    "WANDB_PROJECT": "their-project",
    "WANDB_ENTITY": "their-team",
    "WANDB_RUN_GROUP": "their-group",
    "WANDB_NAME": "their-name",
    "WANDB_NOTES": "their notes",
    "WANDB_TAGS": "their-tag,another",
    "WANDB_JOB_TYPE": "their-job",
    "WANDB_RUN_ID": "theirid1",
}


def _records(folder: Path, **wandb: object) -> dict:
    """The `run` record of an offline run below `folder`, from W&B's process alone, which takes the time it needs."""
    run_dir = folder / "run"
    (run_dir / "wandb").mkdir(parents=True)
    chosen = config(wandb={"mode": "offline", **wandb})
    identity = run_id(run_dir / "wandb" / "id.txt")
    begin = vars(_begin(facts(run_dir, chosen), "offline", identity, folder / "log", 0))
    text = {"log": {"train/step": 1}, "texts": ["To <be>\nor"]}
    told = "".join(f"{json.dumps(message)}\n" for message in ({"begin": begin}, text, {"summary": {}, "finish": 0}))
    process = [sys.executable, "-m", "dist_train.tracking.wandb"]
    subprocess.run(process, input=told, text=True, check=True, capture_output=True, timeout=100)
    [file] = folder.rglob("*.wandb")
    assert any("<pre>To &lt;be&gt;\nor</pre>" in page.read_text() for page in folder.rglob("texts/*.html"))
    return next(record["run"] for record in _inspected(file) if record["type"] == "run")


def test_w_and_b_s_own_variables_beat_our_defaults_and_not_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in THEIRS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "inf")  # which wandb itself refuses
    (tmp_path / "elsewhere").mkdir()
    run = _records(tmp_path)
    assert not [*(tmp_path / "run").rglob("*.wandb")]
    assert (run["project"], run["entity"], run["run_group"]) == ("their-project", "their-team", "their-group")
    assert (run["display_name"], run["notes"], run["job_type"]) == ("their-name", "their notes", "their-job")
    assert (run["run_id"], run["tags"]) == ("theirid1", ["their-tag", "another"])
    assert (tmp_path / "run" / "wandb" / "id.txt").read_text().strip() == "theirid1"
    monkeypatch.delenv("WANDB_DIR")
    run = _records(tmp_path / "ours", project="our-project", entity="our-team", group="our-group", tags=["our-tag"])
    assert (run["project"], run["entity"], run["run_group"]) == ("our-project", "our-team", "our-group")
    assert run["tags"] == ["our-tag"]


@pytest.mark.long  # tests/end_to_end/test_training.py stops and resumes a whole training for the same
def test_a_resumed_run_is_the_same_run_there(tmp_path: Path) -> None:
    _run(tmp_path / "run", "offline", last=20, status="stopped")
    _run(tmp_path / "run", "offline", first=20)
    (one, _), (two, history) = _read(tmp_path / "run")
    assert one["run_id"] == two["run_id"] == (tmp_path / "run" / "wandb" / "id.txt").read_text().strip()
    assert [row["train/step"] for row in history if "train/loss" in row] == list(range(25, TOTAL + 1, EVERY))


def test_no_secret_of_the_environment_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    _run(tmp_path / "run", "offline", last=EVERY)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"hunter2" not in content and KEY.encode() not in content, path


def test_disabled_leaves_nothing(tmp_path: Path) -> None:
    _run(tmp_path / "run", "disabled")
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.mark.parametrize(("status", "limit_s"), [("done", 25), ("stopped", 20)])
def test_a_silent_server_costs_seconds_at_the_end_and_nothing_before(
    tmp_path: Path, monkeypatch, capsys, silent_server: str, status: str, limit_s: float
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / "run").mkdir()
    chosen = config(wandb={"mode": "auto"})
    tracker = build_tracker(chosen, ONE_RANK, tmp_path / "run")
    begun = time.monotonic()
    told(tracker, tmp_path / "run", chosen)
    assert time.monotonic() - begun < 1
    while not list((tmp_path / "run" / "wandb").glob("run-*")):  # until it is trying to connect
        assert time.monotonic() - begun < 60
        time.sleep(0.1)
    begun = time.monotonic()
    tracker.finish(outcome(TOTAL, tmp_path / "run", status))
    assert time.monotonic() - begun < limit_s
    assert "wandb  not reachable (it took too long), offline; to upload: wandb sync" in capsys.readouterr().err
    [(_, history)] = _read(tmp_path / "run")
    assert [row["train/step"] for row in history if "train/loss" in row] == list(range(EVERY, TOTAL + 1, EVERY))


def test_a_process_that_dies_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    chosen = config(wandb={"mode": "offline"})
    tracker = build_tracker(chosen, ONE_RANK, tmp_path / "run")
    told(tracker, tmp_path / "run", chosen, last=EVERY)
    [child] = _children("dist_train.tracking.wandb")
    os.kill(child, signal.SIGKILL)
    tracker.finish(outcome(TOTAL, tmp_path / "run"))
    said = capsys.readouterr().err
    assert said.count("! wandb stopped: its process ended") == 1 and "✓ done" in said
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == EVERY


@pytest.mark.parametrize("how", ["raise=1", "kill=1"])
def test_a_training_that_dies_is_a_failed_run_there(tmp_path: Path, how: str) -> None:
    program = [sys.executable, "-m", "tests.unit.dist_train.tracking.runs", str(tmp_path / "run"), "wandb=offline", how]
    assert subprocess.run(program, cwd=ROOT, capture_output=True).returncode != 0
    deadline = time.monotonic() + 20
    while not (lives := _summaries(tmp_path / "run")) or lives[0]["exit_code"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    [whole], [file] = lives, _files(tmp_path / "run")
    history = _history(_inspected(file))
    assert whole["exit_code"] == 1
    assert history[-1]["train/step"] == TOTAL
    figures = whole["summary"]  # the last and the best are there from the first evaluation on
    assert (figures["best/accuracy"], figures["final/loss"], figures["best/step"]) == (
        TOTAL / (TOTAL + 1),
        1 / TOTAL,
        TOTAL,
    )


def test_a_stopped_process_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    chosen = config(wandb={"mode": "offline"})
    tracker = build_tracker(chosen, ONE_RANK, tmp_path / "run")
    told(tracker, tmp_path / "run", chosen, last=EVERY)
    [child] = _children("dist_train.tracking.wandb")
    os.kill(child, signal.SIGSTOP)
    monkeypatch.setitem(LOCAL_TIMEOUT_S, "stopped", 1.0)
    begun = time.monotonic()
    tracker.finish(outcome(TOTAL, tmp_path / "run", "stopped"))
    assert time.monotonic() - begun < 10
    assert "! wandb stopped: it did not end in time" in capsys.readouterr().err


def _children(module: str) -> list[int]:
    listing = subprocess.check_output(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], text=True)
    return [int(line.split()[0]) for line in listing.splitlines() if module in line]


@pytest.mark.parametrize(
    ("configured", "environment", "result"),
    [
        ("auto", {}, "auto"),
        ("online", {}, "online"),
        ("auto", {"WANDB_MODE": "online"}, "auto"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("offline", {"WANDB_MODE": "nonsense"}, "offline"),
    ],
)
def test_of_config_and_environment_the_one_that_tells_less_wins(
    monkeypatch: pytest.MonkeyPatch, configured: str, environment: dict[str, str], result: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(configured) == result


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("", 15), ("x", 15), ("inf", 15), ("-inf", 15), ("nan", 15), ("0", 1), ("2.6", 3), ("1e300", 86_400)],
)
def test_a_time_to_begin_is_finite_whatever_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, given: str, seconds: int
) -> None:
    monkeypatch.setitem(wandb.ENVIRONMENT, "WANDB_INIT_TIMEOUT", given)
    assert wandb._init_s() == seconds
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds)  # takes it
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
