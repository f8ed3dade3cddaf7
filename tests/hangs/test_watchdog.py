"""The watchdog beside processes that say how far they are and then do nothing; no torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import get_args

import pytest

from dist_train.heartbeat import Phase
from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.process_id import stat
from dist_train.rundir.records import RankRecord
from launch.children import ROOT as HOME
from launch.diagnosis.nodes import Nodes
from launch.diagnosis.watchdog import PHASES, Hang, Watchdog
from launch.rank import heartbeat
from launch.rank.page import Pages
from tests.end_to_end.test_launcher import until

RANK = """
import ctypes, os, pathlib, subprocess, sys, time
sys.path.append(sys.argv[1])
import main
BUSY = "import os, sys; all(os.getppid() == int(sys.argv[1]) for _ in iter(int, 1))"  # ends with its parent
module, page = main.beside("rank/heartbeat"), main.beside("rank/page").Page(sys.argv[2], int(sys.argv[3]))
wrap, log = main.beside("torch_patches").wrap_collective, main.beside("rank/collectives").CollectiveLog
module.install(page.memory, lambda memory: log(memory, wrap))
if sys.argv[4] != "unknown":
    sys.modules[module.MODULE].beat(sys.argv[4], 7)
if sys.argv[5] == "is stuck":  # beside what our own threads and W&B's process do in it
    sys.path.append(str(pathlib.Path(sys.argv[1]).parents[1]))
    from dist_train import heartbeat
    from dist_train.rundir.lease import Lease
    lease = Lease(renewal=0.1, renews=heartbeat.set_aside)
    lease.take(pathlib.Path("run"))
    heartbeat.set_aside(subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())], stdout=subprocess.DEVNULL).pid)
print("ready", flush=True)
if sys.argv[5] == "waits in the kernel":  # state D: clone(2) with CLONE_VFORK, whose child ends with its parent
    if ctypes.CDLL(None).syscall(56, 0x4000 | 17, 0, 0, 0, 0) == 0:
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
while sys.argv[5] == "spins":
    pass
time.sleep(600)
"""


@pytest.fixture
def pages() -> Iterator[Pages]:
    pages = Pages(3)
    yield pages
    pages.close()


@pytest.fixture
def start(pages, tmp_path) -> Iterator:
    begun = []

    def one(rank: int, phase: str, what: str = "sleeps") -> RankRecord:
        command = [sys.executable, "-c", RANK, str(HOME / "launch/rank"), pages.path, str(rank), phase, what]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        begun.append(process)
        assert process.stdout.readline() == "ready\n"
        me = {"host": "here", "pid": process.pid, "started": stat(process.pid).started}
        return RankRecord(**me, rank=rank, local_rank=rank, agent=os.getpid())

    yield one
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def dog(tmp_path, pages) -> Callable[[float | None], Watchdog]:
    folder = GenerationDir(tmp_path)
    return lambda limit: Watchdog(folder, pages, limit, Nodes(folder, "here", 1))


def watch(dog: Watchdog, alive: list[RankRecord], seconds: float, before=lambda: None) -> Hang | None:
    before()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (hang := dog.look(alive, [])) is not None:
            return hang
        time.sleep(0.1)
    return None


def test_ranks_that_finish_no_step_are_hung(start, dog):
    hang = watch(dog(1.0), [start(0, "step"), start(1, "step")], 60)
    assert hang is not None and [one.heartbeat.step for one in hang.evidence] == [7, 7]
    assert all(one.process.frames[0].file == "<string>" for one in hang.evidence)


@pytest.mark.parametrize("begun, then", [([0], [1]), ([0, 1], [0, 2]), ([0, 1], [1]), ([1], [0, 1])])
def test_ranks_may_begin_and_end_between_two_looks(start, dog, begun, then):
    """A short script's first rank is over before its second has begun."""
    ranks = {rank: start(rank, "step") for rank in {*begun, *then}}
    watchdog = dog(None)
    for numbers in (begun, begun, then, then):
        assert watchdog.look([ranks[number] for number in numbers], []) is None


def test_a_rank_that_saves_holds_up_the_others_rightly(start, dog):
    assert watch(dog(1.0), [start(0, "save"), start(1, "step")], 5) is None


def test_a_job_that_was_stopped_as_a_whole_is_not_hung(start, dog):
    alive = [start(0, "step"), start(1, "step")]

    def stop_all() -> None:
        for record in alive:
            os.kill(record.pid, signal.SIGSTOP)

    assert watch(dog(1.0), alive, 5, stop_all) is None


def test_a_training_that_is_quiet_is_told_once_before_it_is_ended(start, dog, monkeypatch):
    monkeypatch.setattr("launch.diagnosis.watchdog.STEP", 1.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.END_S", 4.0)
    watchdog, alive = dog(None), [start(0, "step"), start(1, "step")]
    told = watch(watchdog, alive, 60)
    assert told is not None and not told.is_over and told.ends_after == 4.0 and told.seconds < 4
    ended = watch(watchdog, alive, 60)
    assert ended is not None and ended.is_over and ended.seconds > 4


def test_a_training_that_computes_is_given_more_time(start, dog, monkeypatch):
    monkeypatch.setattr("launch.diagnosis.watchdog.STEP", 1.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.END_S", 2.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.NEXT_ACTIVITY", 0.2)
    watchdog, alive = dog(None), [start(0, "step", "spins")]
    assert watch(watchdog, alive, 60) is not None
    assert watch(watchdog, alive, 4) is None
    ended = watch(watchdog, alive, 60)
    assert ended is not None and ended.is_over and ended.ends_after == 8.0


def test_a_training_that_waits_for_a_disk_is_given_more_time(start, dog, monkeypatch):
    monkeypatch.setattr("launch.diagnosis.watchdog.STEP", 1.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.END_S", 2.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.NEXT_ACTIVITY", 0.2)
    watchdog, alive = dog(None), [start(0, "step", "waits in the kernel"), start(1, "step")]
    until(lambda: stat(alive[0].pid).state == "D")
    told = watch(watchdog, alive, 60)
    assert told is not None and not told.is_over
    assert watch(watchdog, alive, 4) is None
    ended = watch(watchdog, alive, 60)
    assert ended is not None and ended.is_over and ended.ends_after == 8.0


def test_what_our_own_threads_do_in_a_stuck_rank_is_no_work(start, dog, monkeypatch):
    monkeypatch.setattr("launch.diagnosis.watchdog.STEP", 1.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.END_S", 3.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.NEXT_ACTIVITY", 0.2)
    watchdog, alive = dog(None), [start(0, "step", "is stuck")]
    told = watch(watchdog, alive, 60)
    assert told is not None and not told.is_over and told.ends_after == 3.0
    ended = watch(watchdog, alive, 60)
    assert ended is not None and ended.is_over and ended.ends_after == 3.0


def test_another_program_is_told_of_and_never_ended_unasked(start, dog, monkeypatch):
    monkeypatch.setattr("launch.diagnosis.watchdog.BEFORE_COLLECTIVES", 1.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.IDLE", 1.0)
    monkeypatch.setattr("launch.diagnosis.watchdog.END_S", 2.0)
    watchdog, alive = dog(None), [start(0, "unknown"), start(1, "unknown")]
    told = watch(watchdog, alive, 60)
    assert told is not None and not told.is_over and told.ends_after is None
    assert watch(watchdog, alive, 6) is None
    asked = watch(dog(2.0), alive, 60)
    assert asked is not None and asked.is_over


def test_every_phase_has_a_deadline():
    assert set(PHASES) | {"unknown"} == {*heartbeat.PHASES} == {*get_args(Phase), "unknown"}


def test_connecting_is_no_work_however_busily_it_looks_around(start, dog, monkeypatch):
    """As NCCL does while it waits for a peer that never comes. Imports and downloads look the same, and are work."""
    monkeypatch.setitem(PHASES, "connect", 2.0)
    monkeypatch.setitem(PHASES, "init", 2.0)
    busy = [start(0, "init", "spins")]
    assert watch(dog(1.0), busy, 6) is None
    busy.append(start(1, "connect", "spins"))
    assert watch(dog(1.0), busy, 6) is None  # it may wait for the first
    hang = watch(dog(1.0), busy[1:], 60)
    assert hang is not None and hang.evidence[0].heartbeat.phase == "connect"
