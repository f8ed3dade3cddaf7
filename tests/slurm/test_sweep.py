"""A sweep as a job array on a real SLURM: tasks that are killed in the middle, and what --resume makes of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.test_sweep import is_past, only_sweep, rows_of, supervisor_of
from tests.slurm.cluster import Cluster, wait_until

ROOT = Path(__file__).resolve().parents[2]
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
PATIENCE = 240
"""Seconds: on a loaded machine each of the tasks takes half a minute."""

pytestmark = pytest.mark.timeout(1800)


def _sweep(cluster: Cluster, folder: Path, *words: str, code: int = 0) -> str:
    """Runs `dist-train sweep` to its end; returns its stdout."""
    command = [sys.executable, "-m", "dist_train.launch", "sweep", *words]
    environment = cluster.environment | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def _script_of(folder: Path) -> str:
    return (folder / "slurm" / "job.sbatch").read_text()


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "slurm").glob("*.log")))


@pytest.mark.parametrize(
    ("points", "killed"), [(2, (1,)), pytest.param(8, (2, 5), marks=pytest.mark.long)], ids=["2", "8"]
)
def test_an_array_with_killed_tasks_is_whole_after_resume(slurm_cluster, tmp_path, points, killed):
    (tmp_path / "digits.yaml").write_text(CONFIG)
    (tmp_path / "points.yaml").write_text(_points(points, killed))
    out = _sweep(slurm_cluster, tmp_path, "digits.yaml", "--list", "points.yaml", "--slurm", "--jobs", "2", "--json")
    folder = only_sweep(tmp_path)
    runs = [folder / point["name"] for point in json.loads((folder / "sweep.json").read_text())["points"]]
    assert {point["state"] for point in json.loads(out)["points"]} <= {"queued", "running"}
    assert f"--array=0-{points - 1}%2" in _script_of(folder)
    for number in killed:
        wait_until(lambda run=runs[number]: is_past(run, 20), PATIENCE * points / 2, f"point {number} to train")
        # Else it comes back by itself.
        slurm_cluster.run(["scontrol", "update", f"JobId={_job_of(runs[number])}", "Requeue=0"])
        os.kill(supervisor_of(runs[number]), signal.SIGKILL)
    array = _job_of(runs[0]).partition("_")[0]
    wait_until(lambda: not _in_queue(slurm_cluster, array), PATIENCE * points / 2, "the array to end")
    told = {point["point"]: point["state"] for point in json.loads(_table(slurm_cluster, tmp_path, folder))["points"]}
    expected = {run.name: "died" if number in killed else "done" for number, run in enumerate(runs)}
    assert told == expected, _logs(folder)

    out = _sweep(slurm_cluster, tmp_path, "--resume", str(folder), "--slurm", "--follow", "--json")
    assert f"--array={','.join(map(str, killed))}" in _script_of(folder)
    table = json.loads(out)["points"]
    assert [point["state"] for point in table] == ["done"] * points, _logs(folder)
    best = {run.name: max(row["accuracy"] for row in rows_of(run) if row["kind"] == "evaluation") for run in runs}
    assert {point["point"]: point["best"] for point in table} == best
    assert [point["best"] for point in table] == sorted(best.values(), reverse=True)
    for number in killed:
        steps = [row["step"] for row in rows_of(runs[number]) if row["kind"] == "train"]
        assert steps == list(range(1, 301))
        assert _result(runs[number]) == _result(runs[0])  # which nothing happened to
    assert len((folder / "table.csv").read_text().splitlines()) == points + 1


def _job_of(run: Path) -> str:
    return json.loads((run / "slurm" / "job.json").read_text())["job"]


def _points(count: int, killed: tuple[int, ...]) -> str:
    """The killed ones differ from the first in nothing that its result depends on."""
    lines = [f"- {{checkpoint.keep: {3 + number}}}" if number in (0, *killed) else f"- {{seed: {number}}}"
             for number in range(count)]  # fmt: skip
    return "\n".join(lines)


def _in_queue(cluster: Cluster, job: str) -> bool:
    return bool(cluster.run(["squeue", "--noheader", f"--jobs={job}"], check=False).stdout.strip())


def _table(cluster: Cluster, cwd: Path, folder: Path) -> str:
    return _sweep(cluster, cwd, "--table", str(folder), "--json")


def _result(run: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "time"} for row in rows_of(run)]


@pytest.mark.long
def test_a_requeued_task_comes_back_to_its_own_run(slurm_cluster, tmp_path):
    (tmp_path / "digits.yaml").write_text(CONFIG)
    _sweep(slurm_cluster, tmp_path, "digits.yaml", "--over", "seed=0,1", "--slurm")
    folder = only_sweep(tmp_path)
    run = folder / "001-seed1"
    job = _job_of(run)
    wait_until(lambda: is_past(run, 20), PATIENCE, "the second point to train")
    slurm_cluster.run(["scancel", "--batch", "--signal=USR1", job])
    ended = slurm_cluster.wait(job, timeout=PATIENCE)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), _logs(folder)
    assert [row["step"] for row in rows_of(run) if row["kind"] == "train"] == list(range(1, 301))


def test_what_sbatch_refuses_leaves_nothing(slurm_cluster, tmp_path):
    (tmp_path / "digits.yaml").write_text(CONFIG)
    words = ("digits.yaml", "--over", "seed=0,1", "--slurm", "--partition", "nowhere")
    script = _sweep(slurm_cluster, tmp_path, *words, "--dry-run")
    assert "#SBATCH --partition=nowhere" in script and "#SBATCH --array=0-1" in script and "seed=" not in script
    _sweep(slurm_cluster, tmp_path, *words, code=2)
    assert list(tmp_path.rglob("sweep-*")) == []


def test_a_sweep_in_the_queue_is_left_alone_until_it_is_stopped(slurm_cluster, tmp_path):
    (tmp_path / "digits.yaml").write_text(CONFIG)
    later = "slurm.options=['--begin=now+1hour']"
    _sweep(slurm_cluster, tmp_path, "digits.yaml", later, "--over", "seed=0,1", "--slurm")
    folder = only_sweep(tmp_path)
    for words in (("--table", str(folder)), ("--resume", str(folder)), ("--resume", str(folder), "--slurm")):
        out = _sweep(slurm_cluster, tmp_path, *words, "--json")
        assert [point["state"] for point in json.loads(out)["points"]] == ["queued", "queued"]
    environment = slurm_cluster.environment | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dist_train.launch", "stop", str(folder)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=PATIENCE)
    out = _table(slurm_cluster, tmp_path, folder)
    assert [point["state"] for point in json.loads(out)["points"]] == ["missing", "missing"]
