"""When the ranks of a node ended."""

import subprocess
import time
from dataclasses import asdict, replace

import pytest

from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.records import RankRecord
from launch.rank.page import FACTS, Page, Pages
from launch.supervisor import exit_watcher
from launch.supervisor.exit_watcher import ranks_of, watch_exits


@pytest.fixture
def pages():
    pages = Pages(4)
    yield pages
    pages.close()


def test_the_time_of_each_death_is_seen_and_ranks_may_begin_meanwhile(pages):
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]

    def begin(number: int) -> None:
        rank = replace(ProcessId.myself(), pid=sleepers[number].pid)
        record = RankRecord(**asdict(rank), rank=10 + number, local_rank=number, agent=1)
        Page(pages.path, number).put(FACTS, asdict(record))

    begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    begin(0)
    with watch_exits(pages) as exits:
        for number in (0, 1):
            begin(number)
            sleepers[number].kill()
            sleepers[number].wait()
            _until_seen(exits, 10 + number)
        begin(2)
    sleepers[2].kill()
    sleepers[2].wait()
    assert [one.rank for one in ranks_of(pages)] == [10, 11, 12]
    assert list(exits) == [10, 11]
    assert begun < exits[10] < exits[11] < time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_the_watch_ends_at_once(pages, monkeypatch):
    monkeypatch.setattr(exit_watcher, "_LOOK_S", 600.0)
    begun = time.monotonic()
    with watch_exits(pages) as exits:
        pass
    assert exits == {} and time.monotonic() - begun < 60


def test_a_rank_that_begins_and_dies_between_two_looks_is_seen(pages, monkeypatch):
    monkeypatch.setattr(exit_watcher, "_LOOK_S", 600.0)
    with watch_exits(pages) as exits:
        brief = subprocess.Popen(["true"])
        rank = replace(ProcessId.myself(), pid=brief.pid)
        Page(pages.path, 0).put(FACTS, asdict(RankRecord(**asdict(rank), rank=7, local_rank=0, agent=1)))
        brief.wait()
    assert list(exits) == [7]


def _until_seen(exits: dict[int, int], rank: int) -> None:
    deadline = time.monotonic() + 60
    while rank not in exits:
        assert time.monotonic() < deadline
        time.sleep(0.01)
