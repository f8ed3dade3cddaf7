"""Whatever way a rank of a plain script fails in: the right rank and the right cause come first, with a slow poll."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.failures.ways import WAYS, Way

ROOT = Path(__file__).parents[2]
PATIENCE = 240
INTERVAL = "1"
"""Seconds between two looks of torch's agent: by then all ranks are dead, and it cannot tell who was first."""


def fail(folder: Path, way: Way, rank: int) -> tuple[int, dict, str]:
    """Exit code, verdict and what was said."""
    command = [sys.executable, str(Path(__file__).with_name("start.py")), str(folder), INTERVAL, way.name, str(rank)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def check(folder: Path, way: Way, rank: int) -> None:
    code, verdict, said = fail(folder, way, rank)
    first = said[said.index("✗") :].splitlines()[0]
    assert verdict["outcome"] == "failed" and verdict["exit_code"] == code
    if way.kind:  # else who notices it is a matter of luck
        assert (verdict["cause"]["rank"], verdict["cause"]["kind"]) == (rank, way.kind), said
        assert f"rank {rank} " in first, said
    assert [word for word in way.words if word not in said] == [], said
    assert code == way.code, said
    named = [line for line in said.splitlines() if line.startswith(("  rank ", "  ranks "))]
    assert named and len(named) <= 3, said


@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("way", [way for way in WAYS if way.default], ids=lambda way: way.name)
def test_the_guilty_rank_and_its_cause_come_first(way, tmp_path):
    check(tmp_path, way, way.rank)


@pytest.mark.long
@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_each_way_on_each_rank(way, rank, tmp_path):
    check(tmp_path, way, rank)
