"""Sweeps on this machine: real trainings that fail, are killed and stopped, and a table that is right about them."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_launcher import PATIENCE, ROOT, until

CONFIG = """
name: digits
data: {name: digits}
model: {name: cnn, width: 4}
batch: {microbatches: 2, global_size: 32}
train: {duration: 300 steps}
eval: {every: 100 steps}
checkpoint: {every: 20 steps}
tracking: {wandb: {mode: disabled}}
"""
POINTS = """
- {checkpoint.keep: 3}
- {checkpoint.keep: 4}
- {optimizer.lr: 1.0e+30}
- {seed: 1}
"""

pytestmark = pytest.mark.timeout(900)


class Sweep:
    """One `dist-train sweep`, told from other processes by a mark in its environment."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.mark = f"SWEEP_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dist_train.launch", "sweep", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), name: value, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def left(self) -> list[int]:
        """Its processes that still run."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(path)]

    def _is_ours(self, process: Path) -> bool:
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            return state not in "ZX" and self.mark.encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr; nothing may be left."""
        out, said = self.process.communicate(timeout=3 * PATIENCE)
        assert self.left() == [], said
        return self.process.returncode, out, said

    def clean_up(self) -> None:
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    (tmp_path / "digits.yaml").write_text(CONFIG)
    (tmp_path / "points.yaml").write_text(POINTS)
    begun: list[Sweep] = []

    def start(*words: str) -> Sweep:
        begun.append(Sweep(tmp_path, *words))
        return begun[-1]

    yield start
    for one in begun:
        one.clean_up()


def only_sweep(folder: Path) -> Path:
    found = list((folder / "runs" / "digits").glob("sweep-*"))
    assert len(found) == 1
    return found[0]


def rows_of(run: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):  # not there yet, or its last line is being written
        return []


def is_past(run: Path, step: int) -> bool:
    return any(row["step"] > step for row in rows_of(run))


def supervisor_of(run: Path) -> int:
    return json.loads((run / "generations" / "1" / "nodes" / "node0.json").read_text())["pid"]


def result(run: Path) -> list[dict]:
    """All that a run's result is, but the clock."""
    return [{key: value for key, value in row.items() if key != "time"} for row in rows_of(run)]


def states(out: str) -> dict[str, str]:
    """From the JSON on stdout: state by the point's number."""
    return {point["point"][:3]: point["state"] for point in json.loads(out)["points"]}


@pytest.mark.long
def test_a_sweep_that_is_killed_and_stopped_is_whole_after_resume(sweep, tmp_path):
    """In turn: the second point is killed, the third cannot be trained, the fourth is interrupted. Then two at once."""
    first = sweep("digits.yaml", "--list", "points.yaml", "--json")
    until(lambda: list((tmp_path / "runs" / "digits").glob("sweep-*/001*/metrics.jsonl")), 3 * PATIENCE)
    folder = only_sweep(tmp_path)
    runs = [folder / point["name"] for point in json.loads((folder / "sweep.json").read_text())["points"]]
    until(lambda: is_past(runs[1], 20))
    os.kill(supervisor_of(runs[1]), signal.SIGKILL)
    until(lambda: is_past(runs[3], 20), 3 * PATIENCE)
    os.kill(first.process.pid, signal.SIGTERM)
    code, out, said = first.end()
    assert code == 143
    assert f"to go on with what is not done: dist-train sweep --resume {folder.relative_to(tmp_path)}" in said
    assert states(out) == {"000": "done", "001": "died", "002": "failed", "003": "stopped"}
    untouched = (runs[0] / "state.json").stat()

    code, out, said = sweep("--resume", str(folder), "--jobs", "2", "--json").end()
    assert code == 11 and "002-lr1e30 failed after" in said and "000-" not in said
    assert states(out) == {"000": "done", "001": "done", "002": "failed", "003": "done"}
    assert (runs[0] / "state.json").stat().st_mtime_ns == untouched.st_mtime_ns
    assert result(runs[0]) == result(runs[1])  # the killed one, exactly as the one that nothing happened to
    assert [row["step"] for row in rows_of(runs[3]) if row["kind"] == "train"] == list(range(1, 301))
    _check_table(folder, json.loads(out), runs)


def _check_table(folder: Path, told: dict, runs: list[Path]) -> None:
    """Against what the runs themselves have on record."""
    assert json.loads((folder / "table.json").read_text()) == told
    best = {
        run.name: max(row["accuracy"] for row in rows_of(run) if row["kind"] == "evaluation")
        for run in runs
        if "lr" not in run.name
    }
    ranked = [point for point in told["points"] if point["rank"]]
    assert {point["point"]: point["best"] for point in ranked} == best
    assert [point["best"] for point in ranked] == sorted(best.values(), reverse=True)
    assert "is not finite" in told["points"][-1]["reason"] and told["points"][-1]["best"] is None
    assert len((folder / "table.csv").read_text().splitlines()) == 5


def test_a_sweep_is_stopped_as_a_whole_by_the_name_of_its_folder(sweep, tmp_path):
    started = sweep("digits.yaml", "--over", "seed=0..3", "--jobs", "2", "--json")
    runs = tmp_path / "runs" / "digits"
    until(lambda: len([run for run in runs.glob("sweep-*/0*") if is_past(run, 5)]) == 2, 3 * PATIENCE)
    stop = [sys.executable, "-m", "dist_train.launch", "stop", str(only_sweep(tmp_path))]
    done = subprocess.run(stop, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": stopped at step ") == 2, done.stderr
    code, out, _ = started.end()
    assert code == 143
    assert sorted(states(out).values()) == ["missing", "missing", "stopped", "stopped"], out


def test_nothing_outlives_a_killed_sweep(sweep, tmp_path):
    started = sweep("digits.yaml", "--over", "seed=0..3", "--jobs", "2")
    until(lambda: len(list((tmp_path / "runs" / "digits").glob("sweep-*/*/generations/1/nodes/*.json"))) == 2)
    assert len(started.left()) >= 3
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.wait()
    until(lambda: started.left() == [], 20)


def test_a_second_ctrl_c_ends_everything_at_once(sweep, tmp_path):
    started = sweep("digits.yaml", "--over", "seed=0..3", "--jobs", "2")
    until(lambda: len(list((tmp_path / "runs" / "digits").glob("sweep-*/*/generations/1/nodes/*.json"))) == 2)
    for run in (tmp_path / "runs" / "digits").glob("sweep-*/*/generations"):
        os.kill(supervisor_of(run.parent), signal.SIGSTOP)  # it will not hear the first one
    os.killpg(started.process.pid, signal.SIGINT)
    assert "once more to kill at once" in next(line for line in started.process.stderr if "running, each" in line)
    time.sleep(0.5)  # sooner, it would be taken for an echo of the first
    os.killpg(started.process.pid, signal.SIGINT)
    code, out, said = started.end()
    assert code == 130 and "missing" in out and "--resume" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["digits.yaml"], "what is to be varied?"),
        (["digits.yaml", "--over", "optimizer.lr=0.1,-1", "--over", "sed=1"], "Did you mean seed?"),
        (["digits.yaml", "--over", "seed=0,1", "--nproc-per-node", "3"], "3 ranks need at least as many microbatches"),
        (["digits.yaml", "--list", "nowhere.yaml"], "--list nowhere.yaml: No such file"),
        (["--resume", "nowhere"], "nowhere is no sweep's folder"),
        (["digits.yaml", "--resume", "."], "leave CONFIG, overrides, --over and --list out"),
    ],
)
def test_a_mistake_creates_nothing(sweep, tmp_path, words, told):
    before = sorted(tmp_path.iterdir())
    code, out, said = sweep(*words).end()
    assert (code, out) == (2, "") and told in said and "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_shows_the_points(sweep, tmp_path):
    code, out, said = sweep("digits.yaml", "--over", "optimizer.lr=0.1,0.3", "--dry-run").end()
    assert code == 0 and out == "000-lr0.1  optimizer.lr=0.1\n001-lr0.3  optimizer.lr=0.3\n"
    assert "nothing was started" in said and not (tmp_path / "runs").exists()
