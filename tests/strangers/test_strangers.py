"""Forged runs given to every command: a few always, a hundred with `make test-long`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def campaign(*words: str, timeout: float) -> None:
    """In a process of its own: it forks, and has everything loaded."""
    command = [sys.executable, "-m", "tests.strangers", *words]
    path = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-3000:]}"
    assert "0 problems" in done.stdout


def test_a_few_forged_runs_run_no_code_and_end_in_a_line():
    campaign("--count", "2", timeout=250)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_hundred_forged_runs_run_no_code_and_end_in_a_line():
    campaign("--count", "100", timeout=7000)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_so_do_the_programs_as_a_user_starts_them():
    campaign("--count", "5", "--seed", "1", "--real", timeout=7000)
