"""What the terminal of `dist-train stop` says while a run takes its time to end."""

import subprocess
import sys
import time
from dataclasses import asdict
from types import SimpleNamespace

from dist_train.rundir.layout import RunDir
from dist_train.rundir.process_id import ProcessId, stat
from dist_train.rundir.records import NodeRecord
from launch.runs import stop
from launch.supervisor.generation_number import claim

LAUNCHER = """
import signal, sys
signals = {signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print(flush=True)
for _ in range(2):  # the first one asks to save, the second one to end at once
    signal.sigwait(signals)
    print(flush=True)
"""


def test_a_stop_that_is_not_followed_says_once_what_a_second_one_does(tmp_path, monkeypatch):
    said, looks = [], []
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE) as launcher:
        launcher.stdout.readline()
        its = {**asdict(ProcessId.myself()), "pid": launcher.pid, "started": stat(launcher.pid).started}
        claim(RunDir(tmp_path), "node0", None, NodeRecord(**its))

        def look(_: float) -> None:
            looks.append(len(said))
            if len(looks) == 3:
                launcher.stdout.readline()  # it has taken the first: of two that wait, one is lost
                assert stop.stop([tmp_path], lambda place: None, wait=False, as_json=False) == 0
                launcher.wait(30)

        monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=time.monotonic, sleep=look))
        monkeypatch.setattr(stop, "say", said.append)
        monkeypatch.setattr(stop, "SLOW_S", 0.0)
        try:
            assert stop.stop([tmp_path], lambda place: None, wait=True, as_json=False) == 0
        finally:
            launcher.kill()
    told = "  not ended yet: a long step, or a rank that is stuck. To end it unsaved: Ctrl-C, then stop it again"
    assert looks == [2, 2, 2] and said[:2] == ["saving, then stopping … Ctrl-C ends the waiting, not the saving", told]
    assert said[2].endswith(": asked to stop (running)") and len(said) == 4
