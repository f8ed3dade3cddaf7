"""When the ranks of one agent ended."""

import subprocess
import time
from dataclasses import asdict, replace

from dist_train.rundir.codec import write_json
from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.records import RankRecord
from launch.supervisor.exit_watcher import watch_exits

OURS, OTHER = 1001, 1002


def test_deaths_of_another_agents_ranks_or_another_hosts_are_none_of_its_business(tmp_path):
    """Several nodes of a launch may be on one host, and agents on several hosts may have the same process id."""
    mine = ProcessId.myself()
    other = replace(mine, boot=f"{mine.boot}0", host="elsewhere")
    places = [(OURS, mine), (OTHER, mine), (OURS, other), (OURS, mine)]
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in places]
    generation = GenerationDir(tmp_path)
    generation.make()
    for rank, (agent, where) in enumerate(places):
        record = RankRecord(**{**asdict(where), "pid": sleepers[rank].pid}, rank=rank, agent=agent)
        write_json(generation.ranks / f"{rank}.json", record)
    begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with watch_exits(generation, OURS) as exits:
        for sleeper in sleepers[:3]:
            sleeper.kill()
            sleeper.wait()
        _until_seen(exits, 0)
    sleepers[3].kill()
    sleepers[3].wait()
    assert list(exits) == [0]
    assert begun < exits[0] < time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _until_seen(exits: dict[int, int], rank: int) -> None:
    deadline = time.monotonic() + 60
    while rank not in exits:
        assert time.monotonic() < deadline
        time.sleep(0.01)
