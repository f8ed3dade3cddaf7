"""How the ranks of `dist-train run` end: as under torchrun, with the time that they use."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.test_launcher import PATIENCE, until
from tests.end_to_end.test_run import OURS, ROOT, go
from tests.faults.endings import campaign
from tests.faults.lives import is_running
from tests.faults.tally import Order, table

WORKS = """
import atexit, os, signal, sys, time

def work(name):
    for number in range(9):
        time.sleep(0.5)
        with open(name, "a") as file:
            file.write(f"{number}")

def save(*_):
    work("saved")
    sys.exit(1)

sys.excepthook = lambda kind, error, trace: open("hook", "w").write(f"{error} {trace.tb_frame.f_code.co_filename}")
if os.environ["RANK"] == "1":
    signal.signal(signal.SIGTERM, save)
    open("ready", "w").close()
    signal.pause()
while not os.path.exists("ready"):
    time.sleep(0.01)
atexit.register(work, "at_exit")
raise ValueError("wrong")
"""
HANGS_AT_ITS_END = """
import threading
threading.Thread(target=threading.Event().wait).start()
raise ValueError("wrong")
"""
LEAVES_BEHIND = """
import subprocess, sys
assert len(sys.argv) == 4 and set(map(len, sys.argv[1:])) == {120_000}
for name, session in (("upload", True), ("helper", False)):
    subprocess.Popen([sys.executable, "-u", "child.py", name], start_new_session=session)
"""
CHILD = """
import os, sys, time
name = sys.argv[1]
with open(f"{name}.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"{name}.new", name)
while not os.path.exists("go"):
    time.sleep(0.05)
print(name, "is done")
print("and its last line has no end", end="")
open(f"{name}.done", "w").close()
"""
TRAILS_BEHIND = """
import os, torch, torch.distributed as dist

dist.init_process_group("gloo")
tensors = [torch.ones(1000) for _ in range(20)]
dist.all_reduce(tensors[0])
one = min(os.sched_getaffinity(0))
for thread in map(int, os.listdir("/proc/self/task")):
    os.sched_setaffinity(thread, {one})
    if thread != os.getpid():
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
for tensor in tensors:
    dist.all_reduce(tensor)
"""


ALWAYS = 1
"""The case that is always tried; the long suite has many."""


def test_what_is_on_disk_afterwards_is_what_torchrun_leaves(tmp_path):
    tally = campaign(Order(folder=tmp_path, count=2, only=ALWAYS))
    assert tally.injections == 1
    assert tally.failures == [], table([tally])


LEAVES_SOMETHING = """
import gzip, logging, os, typing, torch
import own_library

class Tells:
    def __init__(self, name):
        self.name = name
    def __del__(self, write=os.write):
        write(1, f"{self.name} is gone\\n".encode())

class Saves:
    def __del__(self):  # knows modules and classes by their global names
        os.write(os.open(f"{Tells.__name__}.saved", os.O_WRONLY | os.O_APPEND | os.O_CREAT), b"saved ")

class Handler(logging.Handler):
    emit = print

def leave(name):  # nothing is closed; modules that all ranks share know classes and functions of this one
    global own, unclosed, packed, saves
    saves = Saves()
    own_library.kept.append(Saves())
    own_library.leave()
    own, torch.something = Tells("own"), Tells("torch's")
    maybe: typing.Optional[Tells] = None
    typing.Optional[Saves]
    logging.getLogger("of.ours").addHandler(Handler())
    torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    unclosed, packed = open(name, "w"), gzip.open(f"{name}.gz", "wt")
    for file in (unclosed, packed):
        file.write("written")
"""
LIBRARY = """
import sys, importlib.util
kept = []

def leave():
    global unclosed
    unclosed = open("of_library", "w")
    unclosed.write("written")

spec = importlib.util.find_spec("this")  # whose import prints a poem
spec.loader = importlib.util.LazyLoader(spec.loader)
sys.modules["this"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""
IMPORTS_LATE = """
class Late:
    def __init__(self):
        self.me = self
    def __del__(self, write=os.write, known=torch):
        import torch
        write(1, f"the same torch: {torch is known}\\n".encode())
"""


@pytest.mark.parametrize("preloaded", ["", "gzip,own_library"])
def test_what_a_script_leaves_is_taken_apart_and_written(tmp_path, preloaded):
    (tmp_path / "leaves.py").write_text(f"{LEAVES_SOMETHING}\nleave('unclosed')")
    (tmp_path / "own_library.py").write_text(LIBRARY)
    done = go(tmp_path, *OURS, f"--preload={preloaded}", "leaves.py")
    assert sorted(done.stdout.splitlines()) == ["own is gone", "torch's is gone"]
    assert_written(tmp_path)


def assert_written(folder: Path) -> None:
    packed = gzip.decompress((folder / "unclosed.gz").read_bytes())
    assert (folder / "unclosed").read_text() == packed.decode() == (folder / "of_library").read_text() == "written"
    assert (folder / "Tells.saved").read_text().startswith("saved ")  # of two, Python itself may save but one


def test_what_a_training_s_ranks_share_is_not_taken_apart_and_what_is_their_own_is(tmp_path):
    """Nor is it imported anew by what is deleted last."""
    callback = "class Leaves:\n    def on_start(self, step):\n        leave('unclosed')\n        Late()\n"
    (tmp_path / "leaves.py").write_text(LEAVES_SOMETHING + IMPORTS_LATE + callback)
    (tmp_path / "own_library.py").write_text(LIBRARY)
    words = ["digits", "--run-dir", "run", "--tee", "3", "callbacks=['leaves:Leaves']", "train.duration=1 steps"]
    done = go(tmp_path, "launch", "train", *words, "tracking.wandb.mode=disabled", PYTHONPATH=f"{ROOT}:{tmp_path}")
    said = [line for line in done.stdout.splitlines() if "is gone" in line or "same torch" in line]
    assert sorted(line.rpartition("]: ")[2] for line in said) == ["own is gone", "the same torch: True"]
    assert_written(tmp_path)


def test_a_rank_keeps_the_operators_of_torch_to_its_end_and_not_its_own(tmp_path):
    (tmp_path / "counts.py").write_text(
        "import torch, weakref\n"
        "own = torch.library.Library('of_ours', 'DEF')\n"
        "found = [one for one in weakref.finalize._registry if one.peek()[1] is torch.library._del_library]\n"
        "print(len(found) > 1, sum(one.atexit for one in found))"
    )
    assert go(tmp_path, *OURS, "counts.py").stdout == "True 1\n"


@pytest.mark.parametrize("start", ["exec", pytest.param("preload", marks=pytest.mark.long)])
def test_threads_of_torch_that_lag_behind_do_not_abort_the_end(tmp_path, start):
    """They still hold the last tensors when the script is at its end, as on a busy machine: under torchrun nine of ten
    such runs abort (pytorch/pytorch#190489)."""
    (tmp_path / "trails.py").write_text(TRAILS_BEHIND)
    go(tmp_path, *OURS, f"--start={start}", "--nproc-per-node", "2", "trails.py")


@pytest.mark.long
def test_often(tmp_path):
    tally = campaign(Order(folder=tmp_path, count=200))
    assert tally.failures == [], table([tally])


def test_a_failed_rank_and_its_peer_get_the_time_that_they_use(tmp_path):
    """More than the three seconds that the ranks of a training have."""
    (tmp_path / "works.py").write_text(WORKS)
    done = go(tmp_path, *OURS, "--nproc-per-node", "2", "works.py", code=10)
    assert (tmp_path / "at_exit").read_text() == (tmp_path / "saved").read_text() == "012345678"
    assert (tmp_path / "hook").read_text() == f"wrong {tmp_path}/works.py"
    assert "rank 0 (pid " in done.stderr
    assert "has failed and is still ending: it has up to 30 s (--grace)" in done.stderr
    assert "✗ rank 0 (pid " in done.stderr


def test_a_rank_that_does_not_end_is_ended_when_its_time_is_over(tmp_path):
    (tmp_path / "hangs.py").write_text(HANGS_AT_ITS_END)
    done = go(tmp_path, *OURS, "--grace", "8", "hangs.py", code=10)
    assert "is still ending: it has up to 8 s (--grace)" in done.stderr
    assert "ValueError: wrong" in done.stderr


def test_what_has_a_session_of_its_own_outlives_a_program_that_ended_well(tmp_path):
    """With arguments that are longer than a packet between our processes may be."""
    (tmp_path / "leaves.py").write_text(LEAVES_BEHIND)
    (tmp_path / "child.py").write_text(CHILD)
    go(tmp_path, *OURS, "leaves.py", *(letter * 120_000 for letter in "xyz"))
    until(lambda: (tmp_path / "upload").exists())
    upload, helper = (int((tmp_path / name).read_text()) for name in ("upload", "helper"))
    assert is_running(upload)
    assert not is_running(helper)
    (tmp_path / "go").touch()
    until(lambda: not is_running(upload))
    assert (tmp_path / "upload.done").exists()
    assert not (tmp_path / "helper.done").exists()
    log = tmp_path / "run/logs/rank0.log"
    until(lambda: log.read_text().rstrip("\n").endswith("upload is done\nand its last line has no end"))


STARTS_A_HELPER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
child.wait()
"""
HELPER = """
import os, signal, sys
def leave(number, frame):
    open("told", "w").write(str(number))
    sys.exit()
signal.signal(signal.SIGTERM, leave)
open("ready", "w").close()
signal.pause()
"""


WAYS = [OURS, pytest.param(["torch.distributed.run", "--standalone"], marks=pytest.mark.long)]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_rank_has_started_is_told_to_stop_too(tmp_path, way):
    (tmp_path / "starts.py").write_text(STARTS_A_HELPER)
    process = subprocess.Popen(
        [sys.executable, "-m", *way, "starts.py", HELPER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: (tmp_path / "ready").exists())
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    finally:
        process.kill()
    assert (tmp_path / "told").read_text() == str(signal.SIGTERM.value)


@pytest.mark.parametrize("way", WAYS)
def test_ranks_run_in_the_interpreter_that_is_asked_for(tmp_path, way):
    """Torch's PYTHON_EXEC, such as a wrapper that sets a machine up."""
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nWRAPPED=yes exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "shows.py").write_text('import os; print(os.environ.get("WRAPPED"))')
    assert go(tmp_path, *way, "shows.py", PYTHON_EXEC=str(wrapper)).stdout == "yes\n"


WAITS_FOR_A_DISK = """
import atexit, os
# While it is spawned the parent is not to be interrupted (state D), and the child waits for somebody to open the pipe.
opens = [(os.POSIX_SPAWN_OPEN, 0, "pipe", os.O_RDONLY, 0)]
def ends():
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=opens), 0)
    open("saved", "w").close()
atexit.register(ends)
raise ValueError("wrong")
"""


@pytest.mark.long
def test_a_rank_that_waits_for_a_disk_at_its_end_is_at_work(tmp_path):
    """Otherwise it would have half of its time, as one that does nothing."""
    (tmp_path / "waits.py").write_text(WAITS_FOR_A_DISK)
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen(
        [sys.executable, "-m", *OURS, "--grace", "12", "waits.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while "is still ending" not in process.stderr.readline():
            pass
        time.sleep(6)  # three seconds have gone: with these, three quarters of its time
        os.close(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))
        assert process.wait(PATIENCE) == 10
    finally:
        process.kill()
    assert (tmp_path / "saved").exists()


SAVES_AT_ITS_END = """
import os, time
rank = os.environ["RANK"]
try:
    open(f"ready{rank}", "w").close()
    time.sleep(600)
finally:
    for number in range(9 if rank == "0" else 0):
        time.sleep(0.5)
        with open("saved", "a") as file:
            file.write(f"{number}")
"""


def test_a_rank_that_saves_after_ctrl_c_is_left_alone_when_the_others_are_gone(tmp_path):
    (tmp_path / "saves.py").write_text(SAVES_AT_ITS_END)
    process = subprocess.Popen(
        [sys.executable, "-m", *OURS, "--nproc-per-node", "2", "saves.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert (tmp_path / "saved").read_text() == "012345678"
    assert "KeyboardInterrupt" in (tmp_path / "run/logs/rank0.log").read_text()
    assert "KeyboardInterrupt" not in said


def test_ranks_that_are_another_program_may_end_one_after_the_other(tmp_path):
    """Also where all of them are local rank 0, and with the signals that Python ignores."""
    words = ["--nproc-per-node", "2", "--grace", "2", "--virtual-local-rank", "--tee", "1:3"]
    does = 'yes | head -1; sleep $((RANK * 4)); echo "$RANK $LOCAL_RANK"'
    done = go(tmp_path, *OURS, *words, "--no-python", "bash", "-c", does)
    assert sorted(done.stdout.splitlines()) == ["0 0", "[rank1]: 1 0", "[rank1]: y", "y"]
    assert "Broken pipe" not in done.stderr


def test_an_exit_code_that_is_none(tmp_path):
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(1.5)")
    assert "rank 0" in go(tmp_path, *OURS, "leaves.py", code=10).stderr
    assert (tmp_path / "run/logs/rank0.log").read_text() == "1.5\n"
