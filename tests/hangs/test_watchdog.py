"""The watchdog beside processes that say how far they are and then do nothing; no torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from dist_train.heartbeat import Phase
from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.process_id import stat
from dist_train.rundir.records import RankRecord
from launch.diagnosis.nodes import Nodes
from launch.diagnosis.watchdog import PHASES, Hang, Watchdog
from launch.rank import heartbeat
from launch.supervisor.agent_starter import HOME

RANK = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
import main
module = main.beside("rank/heartbeat")
module.install(Path(sys.argv[2]), int(sys.argv[3]), main.beside("rank/collectives"))
sys.modules[module.MODULE].beat(sys.argv[4], 7)
print("ready", flush=True)
while sys.argv[5] == "spins":
    pass
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path) -> Iterator:
    begun = []

    def one(rank: int, phase: str, what: str = "sleeps") -> RankRecord:
        command = [sys.executable, "-c", RANK, str(HOME / "launch/rank"), str(tmp_path), str(rank), phase, what]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        begun.append(process)
        assert process.stdout.readline() == "ready\n"
        return RankRecord(host="here", pid=process.pid, started=stat(process.pid).started, rank=rank, agent=os.getpid())

    yield one
    for process in begun:
        process.kill()
        process.communicate()


def watch(folder: Path, alive: list[RankRecord], seconds: float, before=lambda: None) -> Hang | None:
    dog = Watchdog(GenerationDir(folder), 1.0, Nodes(GenerationDir(folder), "here", 1))
    before()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (hang := dog.look(alive, [])) is not None:
            return hang
        time.sleep(0.1)
    return None


def test_ranks_that_finish_no_step_are_hung(start, tmp_path):
    hang = watch(tmp_path, [start(0, "step"), start(1, "step")], 60)
    assert hang is not None and [one.heartbeat.step for one in hang.evidence] == [7, 7]
    assert all(one.process.frames[0].file == "<string>" for one in hang.evidence)


@pytest.mark.parametrize("begun, then", [([0], [1]), ([0, 1], [0, 2]), ([0, 1], [1]), ([1], [0, 1])])
def test_ranks_may_begin_and_end_between_two_looks(start, tmp_path, begun, then):
    """A short script's first rank is over before its second has begun."""
    ranks = {rank: start(rank, "step") for rank in {*begun, *then}}
    dog = Watchdog(GenerationDir(tmp_path), None, Nodes(GenerationDir(tmp_path), "here", 1))
    for numbers in (begun, begun, then, then):
        assert dog.look([ranks[number] for number in numbers], []) is None
    assert dog.slow_ranks() == []


def test_a_rank_that_saves_holds_up_the_others_rightly(start, tmp_path):
    assert watch(tmp_path, [start(0, "save"), start(1, "step")], 5) is None


def test_a_job_that_was_stopped_as_a_whole_is_not_hung(start, tmp_path):
    alive = [start(0, "step"), start(1, "step")]

    def stop_all() -> None:
        for record in alive:
            os.kill(record.pid, signal.SIGSTOP)

    assert watch(tmp_path, alive, 5, stop_all) is None


def test_every_phase_has_a_deadline():
    assert set(PHASES) | {"unknown"} == {*heartbeat.PHASES} == {*get_args(Phase), "unknown"}


def test_connecting_is_no_work_however_busily_it_looks_around(start, tmp_path, monkeypatch):
    """As NCCL does while it waits for a peer that never comes. Imports and downloads look the same, and are work."""
    monkeypatch.setitem(PHASES, "connect", 2.0)
    monkeypatch.setitem(PHASES, "init", 2.0)
    busy = [start(0, "init", "spins")]
    assert watch(tmp_path, busy, 6) is None
    busy.append(start(1, "connect", "spins"))
    assert watch(tmp_path, busy, 6) is None  # it may wait for the first
    hang = watch(tmp_path, busy[1:], 60)
    assert hang is not None and hang.evidence[0].heartbeat.phase == "connect"
