"""How long a node's ranks may take to end, which is how long the other nodes wait for its verdict; what is said when
they cannot stop."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.process_id import stat
from dist_train.rundir.records import RankRecord
from launch.rank.heartbeat import PHASES, RECORD
from launch.rank.page import Page, Pages
from launch.signals import ReceivedSignals
from launch.supervisor.other_nodes import NoOtherNodes
from launch.supervisor.stopping import AFTER_FAILURE_S, ENDING_S, Stopping, longest_end
from tests.unit.launch.supervisor.test_launch_log import checkpoint, plan


def test_a_failed_rank_and_then_the_others_may_each_take_what_one_may(tmp_path):
    training = plan(tmp_path, 0)
    script = replace(training, is_training=False)
    assert training.is_training
    patient = replace(script, flags=replace(script.flags, grace=300.0))
    assert longest_end(training) == 2 * AFTER_FAILURE_S, "a training's others die of the failed one: nothing to save"
    assert longest_end(script) == 2 * ENDING_S and longest_end(patient) == 600.0


@pytest.mark.parametrize(
    "phase, quiet, slowest, is_told",
    [("step", 297, 2, True), ("step", 297, 60, False), ("save", 297, 2, False), ("step", 3, 0.1, False)],
)
def test_a_stop_that_nobody_can_follow_is_told_once(tmp_path, phase, quiet, slowest, is_told):
    """No rank has finished a step for long, as its page says; a long save or a slow step is waited for in silence."""
    code = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print(flush=True); time.sleep(60)"
    child, pages = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE), Pages(2)
    try:
        child.stdout.readline()
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - quiet * 10**9
        RECORD.pack_into(Page(pages.path, 0).memory, 0, 5, boot, PHASES.index(phase), 7, slowest, 0, 0)
        me = {"host": "here", "pid": child.pid, "started": stat(child.pid).started}
        rank, said, here = RankRecord(**me, rank=0, local_rank=0, agent=1), [], plan(tmp_path, 0)
        checkpoint(tmp_path, 40)
        with ReceivedSignals() as signals:
            signals.stop = signal.SIGTERM
            stopping = Stopping(here, signals, GenerationDir(tmp_path), pages, said.append, NoOtherNodes(here))
            for _ in range(3):
                stopping.pass_on([rank], [rank])
    finally:
        child.kill()
        child.communicate()
        pages.close()
    assert said[0] == "  saving, then stopping … once more to kill at once" and len(said) == 1 + is_told
    if is_told:
        assert said[1].startswith("  no rank has finished a step for 297 s, so nothing can be saved yet; a second")
        assert said[1].endswith(f"{tmp_path}` again) ends it now, and keeps the last checkpoint, step-00000040")
