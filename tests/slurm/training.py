"""A job that trains the digits on the test cluster, and where to look for its traces."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.rundir.records import LaunchRecord, read_launches
from tests.distributed.training import train
from tests.rank_pool import run_ranks
from tests.slurm.cluster import Cluster, Job, wait_until

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "slurm" / "train.sbatch")
DIGITS = str(ROOT / "configs" / "digits.yaml")
QUIET = "tracking.wandb.mode=disabled"
SIXTY_STEPS = "train.stop_after=60 steps"
TWO_NODES = ("--nodes=2", "--cpus-per-task=1")
ENVIRONMENT = {"DIST_TRAIN_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
ENVIRONMENT |= {"DIST_TRAIN_HOME": str(ROOT)}
LOOK_S = 1.0
"""Between two looks at whether a job is over, while something else is waited for."""

stopping_times: dict[str, list[float]] = {}
"""Seconds from the request to the committed checkpoint, by what made it; printed at the end of the tests."""


@dataclass(frozen=True)
class Submitted:
    """One job, and its run."""

    cluster: Cluster
    id: int | str
    folder: Path
    log: Path

    def steps_seen(self, since: float = 0.0) -> int:
        """Training steps that the run has on record, made since a moment of the wall clock."""
        try:
            rows = (self.folder / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return 0
        whole = (json.loads(row) for row in rows if row.endswith("}"))
        return sum(row["kind"] == "train" and row["time"]["unix"] > since for row in whole)

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())

    def lives(self) -> list[LaunchRecord]:
        return read_launches(self.folder)

    def wait_for_training(self, life: int = 1, steps: int = 5) -> None:
        """Until a life of the job has made some steps."""
        self.wait_until(lambda: len(self.lives()) >= life, f"life {life} to begin")
        began = self.lives()[life - 1].began.unix
        self.wait_until(lambda: self.steps_seen(began) >= steps, f"training to begin in life {life}")

    def wait_for_line(self, words: str) -> None:
        self.wait_until(lambda: words in self.log_text(), f"the words {words!r}")

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        """Waits; gives up soon when the job is over without it."""
        next_look = time.monotonic()

        def is_so() -> bool:
            nonlocal next_look
            if condition():
                return True
            if time.monotonic() >= next_look:  # scontrol costs more than most conditions
                next_look = time.monotonic() + LOOK_S
                job = self.cluster.job(self.id)
                assert not job.finished or condition(), f"the job is {job.state}, before {what}"
            return False

        try:
            wait_until(is_so, seconds, what)
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"{error}; the log:\n{self.log_text()}\n{self.lives()}") from error

    def wait_for_end(self) -> Job:
        return self.cluster.wait(self.id, timeout=400)

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else "(none)"

    def fingerprint(self) -> str:
        return fingerprint(self.folder)


def submit(
    cluster: Cluster, folder: Path, options: Sequence[str], *overrides: str, environment: dict[str, str] | None = None
) -> Submitted:
    """`sbatch OPTIONS train.sbatch digits.yaml OVERRIDES`, from `folder`."""
    variables = ENVIRONMENT | (environment or {})
    job = cluster.submit(*options, SCRIPT, DIGITS, *overrides, QUIET, cwd=folder, environment=variables)
    return Submitted(cluster, job, folder / f"runs/digits/slurm-{job}", folder / f"dist-train-{job}.log")


def python(*arguments: str, cwd: Path) -> str:
    """Runs `python -m ARGUMENTS`; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fingerprint(run: Path) -> str:
    return python("dist_train.launch", "fingerprint", str(run), cwd=run).strip()


def trained_alone(folder: Path, *overrides: str) -> str:
    """The fingerprint that one process reaches, uninterrupted."""
    assert run_ranks(train, 1, folder, DIGITS, "run", *overrides, QUIET, timeout=200) == [0]
    return fingerprint(folder / "run")
