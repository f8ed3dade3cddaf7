"""`slurm_cluster`: a real SLURM of two nodes, started once for the tests in this folder."""

import os
import shutil
import statistics
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, missing_programs
from tests.slurm.training import SIXTY_STEPS, stopping_times, trained_alone


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of a parallel run hands its times on."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["stopping_times"] = dict(stopping_times)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for way, times in getattr(node, "workeroutput", {}).get("stopping_times", {}).items():
        stopping_times.setdefault(way, []).extend(times)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long it took from a request to stop to the committed checkpoint."""
    for way, times in stopping_times.items():
        middle, worst = statistics.median(times), max(times)
        terminalreporter.write_line(
            f"saved after {way}: {len(times)} times, median {middle:.2f} s, worst {worst:.2f} s"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails says what the cluster knew at that time."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("slurm_cluster")
    if report.failed and report.when == "call" and cluster is not None:
        report.sections.append(("SLURM", cluster.account()))
    return report


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"no SLURM here: {', '.join(missing)} missing (Debian: slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root to start jobs")
    # Not tmp_path: munged's socket must have a path of fewer than 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        with Cluster(folder) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def slurm_cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, idle before and after each test."""
    yield running_cluster
    running_cluster.cancel_all()


@pytest.fixture(scope="session")
def alone_after_60(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint that one process reaches after 60 steps."""
    return trained_alone(tmp_path_factory.mktemp("alone"), SIXTY_STEPS)
