"""Deaths: when the ranks of one agent died."""

import os
import socket
import subprocess
import time

from dist_train.rundir.records import write_json
from launch.supervisor.exit_watcher import Deaths

OURS, OTHER = 1001, 1002


def test_deaths_of_another_agents_ranks_or_another_hosts_are_none_of_its_business(tmp_path):
    """Several nodes of a launch may be on one host, and agents on several hosts may have the same process id."""
    here = socket.gethostname()
    own = os.stat("/proc/self/ns/pid").st_ino
    places = [(OURS, here, own), (OTHER, here, own), (OURS, "elsewhere", own), (OURS, here, own + 1), (OURS, here, own)]
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in places]
    for rank, (agent, host, among) in enumerate(places):
        facts = {"rank": rank, "agent": agent, "host": host, "pid_namespace": among, "pid": sleepers[rank].pid}
        write_json(tmp_path / f"{rank}.json", facts)
    begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with Deaths(tmp_path, OURS, here) as deaths:
        for sleeper in sleepers[:4]:
            sleeper.kill()
            sleeper.wait()
        _until_seen(deaths, 0)
    sleepers[4].kill()
    sleepers[4].wait()
    assert list(deaths.stamps()) == [0]
    assert begun < deaths.stamps()[0] < time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _until_seen(deaths: Deaths, rank: int) -> None:
    deadline = time.monotonic() + 60
    while rank not in deaths.stamps():
        assert time.monotonic() < deadline
        time.sleep(0.01)
