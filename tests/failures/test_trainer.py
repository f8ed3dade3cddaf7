"""The same of a training whose dataset or model is the user's and fails on one rank of four."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.failures.test_ways import PATIENCE, ROOT

CONFIG = """
name: failing
run_root: {folder}
data: {{name: "tests.failures.own:Points", args: {data}}}
model: {{name: "tests.failures.own:Net", args: {model}}}
loader: {{workers: {workers}}}
batch: {{global_size: 32, microbatches: 4}}
train: {{duration: 5 epochs}}
"""
WAYS = (
    ("model", "raise", 0, "exception", 10, ("IndexError in your code", "return labels[index]")),
    ("model", "segfault", 0, "signal", 10, ("died of SIGSEGV", "> ", "own.py")),
    ("model", "abort", 0, "signal", 10, ("died of SIGABRT", "> ", "own.py")),
    ("model", "kill", 0, "signal", 10, ("killed by SIGKILL", "not the OOM killer")),
    ("model", "exit-0", 0, "early", 10, ("left with exit code 0",)),
    ("model", "os-exit-0", 0, "early", 10, ("left with exit code 0",)),
    ("model", "gpu-memory", 0, "exception", 12, ("CUDA out of memory", "batch.microbatches")),
    ("data", "raise", 0, "exception", 10, ("IndexError in your code", "while reading sample")),
    ("data", "raise", 1, "exception", 10, ("IndexError in your code", "return labels[index]")),
    ("data", "segfault", 1, "exception", 10, ("lost a loading process", "Segmentation", "its stack:", "own.py")),
    ("data", "kill", 1, "exception", 10, ("lost a loading process", "Killed")),
)
"""Part, act, loading processes, and what must come of it: kind, exit code, words."""


def check(folder: Path, way: tuple, rank: int) -> None:
    part, act, workers, kind, code, words = way
    config = folder / "failing.yaml"
    given = {"data": "{}", "model": "{}", part: f"{{act: {act}, rank: {rank}}}"}
    config.write_text(CONFIG.format(folder=folder / "runs", workers=workers, **given))
    command = [sys.executable, "-m", "dist_train.launch", "train", str(config), "--nproc-per-node", "4", "--json"]
    done = subprocess.run(
        [*command, "--monitor-interval", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout, done.stderr
    verdict, said = json.loads(done.stdout.splitlines()[-1]), done.stderr
    assert (verdict["cause"]["rank"], verdict["cause"]["kind"]) == (rank, kind), said
    assert done.returncode == verdict["exit_code"] == code, said
    assert [word for word in words if word not in said] == [], said


@pytest.mark.long
@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}-{way[1]}-{way[2]}")
def test_each_way_on_each_rank(way, rank, tmp_path):
    check(tmp_path, way, rank)
