"""slurm/train.sbatch, on a real SLURM: two nodes, the time limit, preemption, scancel, arrays."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, Job, wait_until

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "slurm" / "train.sbatch")
DIGITS = str(ROOT / "configs" / "digits.yaml")
QUIET = "tracking.wandb.mode=disabled"
STEPS = "train.stop_after=120 steps"
"""Some seconds: long enough to be stopped in the middle."""
TWO_NODES = ("--nodes=2", "--cpus-per-task=1")
ENVIRONMENT = {"DIST_TRAIN_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Submitted:
    """A job that trains the digits, and where to look for its traces."""

    cluster: Cluster
    id: int | str
    folder: Path
    log: Path

    def steps_seen(self) -> int:
        """Training steps that the run has on record."""
        try:
            rows = (self.folder / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return sum('"train"' in row for row in rows)

    def wait_for_training(self) -> None:
        self._wait(lambda: self.steps_seen() >= 5, "training to begin")

    def wait_for_line(self, words: str) -> None:
        self._wait(lambda: words in self.log_text(), f"the words {words!r}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, 90, what)
        except TimeoutError as error:
            raise AssertionError(f"{error}; the log:\n{self.log_text()}") from error

    def wait_for_end(self) -> Job:
        return self.cluster.wait(self.id, timeout=180)

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else "(none)"

    def fingerprint(self) -> str:
        return _fingerprint(self.folder)


def _train(cluster: Cluster, folder: Path, options: Sequence[str], *overrides: str) -> Submitted:
    job = cluster.submit(*options, SCRIPT, DIGITS, *overrides, QUIET, cwd=folder, environment=ENVIRONMENT)
    return Submitted(cluster, job, folder / f"runs/digits/slurm-{job}", folder / f"dist-train-{job}.log")


def _python(*arguments: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _fingerprint(run: Path) -> str:
    return _python("launch", "fingerprint", str(run), cwd=run).strip()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> str:
    """The fingerprint that one process reaches after as many steps."""
    folder = tmp_path_factory.mktemp("alone")
    _python("launch", "train", DIGITS, "--nproc-per-node=1", "--run-dir=run", STEPS, QUIET, cwd=folder)
    return _fingerprint(folder / "run")


def test_the_script_is_sound():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here; bash -n found nothing")
    subprocess.run(["shellcheck", SCRIPT], check=True)


def test_without_a_config_it_says_how_to_call_it():
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr.startswith("usage: sbatch")) == (2, True)


def test_two_nodes_of_two_ranks_end_in_the_bits_of_one_process(slurm_cluster, tmp_path, alone):
    run = _train(slurm_cluster, tmp_path, ["--nodes=2", "--cpus-per-task=2"], STEPS)
    job = run.wait_for_end()
    assert (job.state, job.exit_code) == ("COMPLETED", 0), run.log_text()
    assert json.loads((run.folder / "state.json").read_text())["world_size"] == 4
    assert (run.folder / "checkpoints/step-00000120/manifest.json").is_file()
    assert run.fingerprint() == alone


def test_a_mistake_in_the_config_fails_the_job_with_code_2(slurm_cluster, tmp_path):
    run = _train(slurm_cluster, tmp_path, TWO_NODES, "optimizer.lrr=0.1")
    job = run.wait_for_end()
    assert (job.state, job.exit_code) == ("FAILED", 2)
    assert "optimizer.lrr" in run.log_text()
    assert not (tmp_path / "runs").exists()


def test_near_the_time_limit_it_saves_is_requeued_and_goes_on(slurm_cluster, tmp_path, alone):
    run = _train(slurm_cluster, tmp_path, TWO_NODES, STEPS)
    run.wait_for_training()
    # What `--signal=B:USR1@120` does, without the minutes of waiting for it.
    slurm_cluster.run(["scancel", "--batch", "--signal=USR1", str(run.id)])
    job = run.wait_for_end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 1), run.log_text()
    assert "start 1:" in run.log_text()
    assert "start 2:" in run.log_text()
    assert run.fingerprint() == alone


def test_scancel_saves_and_does_not_requeue(slurm_cluster, tmp_path):
    run = _train(slurm_cluster, tmp_path, TWO_NODES)
    run.wait_for_training()
    slurm_cluster.run(["scancel", str(run.id)])
    run.wait_for_line("not started again")
    job = run.wait_for_end()
    assert (job.state, job.restarts) == ("CANCELLED", 0)
    state = json.loads((run.folder / "state.json").read_text())
    assert state["status"] == "stopped"
    assert (run.folder / f"checkpoints/step-{state['step']:08d}").is_dir()


@pytest.mark.long
def test_a_preempted_job_saves_within_its_grace_and_goes_on(slurm_cluster, tmp_path, alone):
    run = _train(slurm_cluster, tmp_path, ["--nodes=2", "--exclusive", "--cpus-per-task=1"], STEPS)
    run.wait_for_training()
    urgent = slurm_cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=true", cwd=tmp_path)
    assert slurm_cluster.wait(urgent).state == "COMPLETED"
    job = run.wait_for_end()
    assert (job.state, job.restarts) == ("COMPLETED", 1), run.log_text()
    assert run.fingerprint() == alone


@pytest.mark.long
def test_a_task_of_an_array_is_requeued_by_its_own_name(slurm_cluster, tmp_path, alone):
    options = ["--array=3", "--nodes=1", "--cpus-per-task=1"]
    array = _train(slurm_cluster, tmp_path, options, STEPS)
    run = Submitted(slurm_cluster, f"{array.id}_3", tmp_path / f"runs/digits/slurm-{array.id}_3", array.log)
    run.wait_for_training()
    slurm_cluster.run(["scancel", "--batch", "--signal=USR1", str(run.id)])
    job = run.wait_for_end()
    assert (job.state, job.restarts) == ("COMPLETED", 1), run.log_text()
    assert run.fingerprint() == alone
