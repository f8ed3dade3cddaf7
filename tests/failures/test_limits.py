"""Limits of the system, made real: a memory cgroup with the kernel's OOM killer, a small /dev/shm."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failures.cgroups import memory_cgroup
from tests.failures.test_ways import PATIENCE, ROOT

START = [sys.executable, str(Path(__file__).with_name("start.py"))]
LIMIT = 1_500_000_000
"""Bytes: room for torch's agent and four small ranks."""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of version 1 or 2 with a limit; the test is skipped where none can be had."""
    with memory_cgroup(LIMIT) as folder:
        yield folder


def run(folder: Path, before: str, *words: str, inside: tuple[str, ...] = ()) -> tuple[int, dict, str]:
    """Exit code, verdict and what was said, of a launcher that a shell has prepared something for."""
    done = subprocess.run(
        [*inside, "sh", "-c", f'{before} && exec "$@"', "sh", *START, str(folder), "1", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.timeout(PATIENCE + 60)
def test_the_oom_killer_is_named_with_limit_and_peak(cgroup, tmp_path):
    code, verdict, said = run(tmp_path, f"echo $$ > {cgroup}/cgroup.procs", "eat", "2")
    assert code == 12 and verdict["cause"]["rank"] == 2, said
    assert "rank 2" in said and "killed by the kernel for want of memory (OOM killer)" in said
    assert re.search(r"limit 1\.5 GB \(cgroup\), 1\.[45]\d* GB used at the most", said), said


@pytest.mark.timeout(PATIENCE + 60)
def test_the_oom_killer_is_named_where_it_took_the_fork_server(cgroup, tmp_path):
    code, verdict, said = run(tmp_path, f"echo $$ > {cgroup}/cgroup.procs", "eat-for-two", "2")
    assert (code, verdict["exit_code"], verdict["cause"]) == (12, 12, None), said
    assert "the process that they are forked from was killed by the kernel for want of memory (OOM killer)" in said
    assert re.search(r"limit 1\.5 GB \(cgroup\), 1\.[45]\d* GB used at the most", said), said


@pytest.mark.long
@pytest.mark.timeout(PATIENCE + 60)
def test_a_full_shared_memory_is_named(tmp_path):
    mount = "mount -t tmpfs -o size=8m none /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here: needs root")
    code, verdict, said = run(tmp_path, mount, "shared-memory", "1", inside=("unshare", "-m"))
    assert code == 10 and verdict["cause"]["rank"] == 1, said
    assert "/dev/shm has 8.39 MB" in said and "--shm-size" in said, said
