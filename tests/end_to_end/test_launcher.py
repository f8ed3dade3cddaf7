"""The supervisor, torch's agent and the ranks as real processes: what ends how, with which code, and what is left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
PATIENCE = 60
"""Seconds for anything to happen; a machine under load takes long to import torch."""


class Launch:
    """One supervisor and all below it, told from other processes by a mark in their environment."""

    def __init__(self, folder: Path, ranks: int, *action: str, restarts: float = 0, grace: float = 0) -> None:
        self.folder = folder
        self.mark = f"LAUNCH_TEST={uuid.uuid4()}"
        folder.mkdir(exist_ok=True)
        command = [
            sys.executable,
            str(PROGRAMS / "launch_ranks.py"),
            str(folder),
            str(ranks),
            str(restarts),
            str(grace),
        ]
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [*command, *action],
            env={**os.environ, "PYTHONPATH": str(ROOT), name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=folder,
        )

    def left(self) -> list[int]:
        """Processes of this launch that still run."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(path)]

    def _is_ours(self, process: Path) -> bool:
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            return state not in "ZX" and self.mark.encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def when_ready(self, ranks: int) -> "Launch":
        until(lambda: all((self.folder / f"ready{rank}").exists() for rank in range(ranks)))
        return self

    def pid_of(self, rank: int) -> int:
        return json.loads((self.folder / "generations" / "1" / "ranks" / f"{rank}.json").read_text())["pid"]

    def end(self) -> tuple[int, str]:
        """Exit code and stderr; nothing may be left."""
        _, said = self.process.communicate(timeout=PATIENCE)
        assert self.left() == []
        return self.process.returncode, said

    def verdict(self) -> dict:
        return json.loads((self.folder / "generations" / "1" / "verdict.json").read_text())

    def clean_up(self) -> None:
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()


def until(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    begun: list[Launch] = []

    def start(ranks: int, *action: str, **settings: float) -> Launch:
        folder = tmp_path / "run"
        begun.append(Launch(folder, ranks, *action, **settings))
        return begun[-1]

    yield start
    for one in begun:
        one.clean_up()


# ---------------------------------------------------------------- failures


def test_the_rank_that_raised_is_named_and_not_its_peers(launch):
    run = launch(3, "raise", "--gloo")
    code, said = run.end()
    assert code == 10
    assert re.search(r"✗ rank 1 \(pid \d+\) failed: IndexError in your code", said)
    assert "look_up   return labels[index]" in said and "list index out of range" in said
    assert re.search(r"ranks 0, 2 (were ended for it|lost their peer and ended)|rank 0 (was ended|lost its peer)", said)
    assert "Connection closed" not in said
    assert run.verdict()["cause"]["rank"] == 1
    assert "Traceback (most recent call last)" in (run.folder / "logs" / "rank1.log").read_text()
    assert "rank/main.py" not in (run.folder / "logs" / "rank1.log").read_text()


def test_a_rank_that_leaves_early_is_named(launch):
    code, said = launch(2, "leave-early", "--gloo").end()
    assert code == 10 and "rank 1" in said and "left with exit code 0 while the others were still at work" in said


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        ("leave-with-3", 10, "ended with exit code 3"),
        ("segfault", 10, "died of SIGSEGV"),
        ("user-error", 13, "✗ data.root: no such folder: give another\n"),
        ("out-of-memory", 12, "MemoryError: no 4 TB here"),
    ],
)
def test_exit_codes_say_what_happened(launch, action, code, words):
    run = launch(2, action)
    ended, said = run.end()
    assert ended == code
    assert words in said
    if action == "segfault":
        assert "ranks.py" in said  # faulthandler's stack
    if action == "user-error":
        assert said == words  # one line is enough


def test_a_killed_rank_is_named(launch):
    run = launch(2, "go-on").when_ready(2)
    os.kill(run.pid_of(1), signal.SIGKILL)
    code, said = run.end()
    assert (
        code == 10
        and re.search(r"rank 1 \(pid \d+\) was killed by SIGKILL", said)
        and "rank 0 was ended for it" in said
    )


def test_a_crash_that_repeats_is_told_once_and_given_up(launch):
    run = launch(1, "raise", "--rank", "0", restarts=7)
    code, said = run.end()
    assert code == 10
    assert said.count("list index out of range") == 1
    assert "3 generations in a row saved nothing new" in said
    assert sorted(path.name for path in (run.folder / "generations").iterdir()) == ["1", "2", "3"]
    log = (run.folder / "logs" / "rank0.log").read_text()
    assert log.count("resume none") == 1 and log.count("resume auto") == 2


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_a_signal_saves_and_stops(launch, number, code):
    run = launch(2, "train").when_ready(2)
    os.kill(run.process.pid, number)
    ended, said = run.end()
    assert ended == code
    assert said == "  saving, then stopping … once more to kill at once\n"
    assert json.loads((run.folder / "state.json").read_text()) == {"status": "stopped", "signal": number.name}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.long)]
)
def test_ranks_that_do_not_stop_in_time_are_ended(launch, number, code):
    """One of them is stopped by SIGSTOP, as a process stuck in the kernel would be."""
    run = launch(2, "train", grace=1.5).when_ready(2)
    os.kill(run.pid_of(1), signal.SIGSTOP)
    begun = time.monotonic()
    os.kill(run.process.pid, number)
    ended, said = run.end()
    assert ended == code and time.monotonic() - begun >= 1.5
    assert "! not stopped within 1.5 s (--grace): ended unsaved; there is no checkpoint yet\n" in said


def test_the_stop_command_is_as_good_as_a_signal(launch):
    run = launch(2, "train").when_ready(2)
    for said in (f"{run.folder}: stopped; ", f"{run.folder}: not running (stopped); "):
        command = [sys.executable, "-m", "dist_train.launch", "stop", str(run.folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stderr
    assert run.end()[0] == 143


def test_a_copy_of_a_live_run_is_not_running_and_stopping_it_leaves_the_run_alone(launch, tmp_path):
    run = launch(1, "train").when_ready(1)
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    command = [sys.executable, "-m", "dist_train.launch"]
    done = subprocess.run([*command, "stop", str(copy)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "copy: not running (" in done.stderr, done.stderr
    assert run.process.poll() is None and run.left()
    listed = subprocess.run(
        [*command, "runs", "--root", str(tmp_path), "--json"], cwd=ROOT, capture_output=True, text=True
    )
    states = {one["path"]: one["state"] for one in json.loads(listed.stdout)}
    assert states[str(copy)] == "died" and states[str(run.folder)] != "died", states
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end()[0] == 143


def test_the_stop_command_says_where_it_cannot_reach(tmp_path):
    nodes = tmp_path / "run" / "generations" / "1" / "nodes"
    nodes.mkdir(parents=True)
    (nodes / "node0.json").write_text(json.dumps({"pid": 1, "started": 1, "host": "elsewhere"}))
    for folder, said in ((nodes.parents[2], "runs on elsewhere (process 1)"), (tmp_path / "no", "no run there")):
        command = [sys.executable, "-m", "dist_train.launch", "stop", str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr


def test_ctrl_c_saves_and_stops(launch):
    run = launch(2, "train").when_ready(2)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does it
    assert run.end()[0] == 130


@pytest.mark.parametrize("module", ["dist_train.config.replies", "click"])
def test_ctrl_c_while_the_command_is_imported(tmp_path, module):
    """Before and after the fork server has begun."""
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    hook = (
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *more):\n"
        f"        if name == {module!r}:\n"
        f"            {interrupt}\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from launch.__main__ import main\n"
        "sys.argv[1:] = ['train', 'digits']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hook],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert [*tmp_path.iterdir()] == []


def test_a_signal_to_one_rank_is_told_by_its_state(launch):
    run = launch(1, "train").when_ready(1)
    os.kill(run.pid_of(0), signal.SIGTERM)
    assert run.end()[0] == 143


def test_a_second_ctrl_c_ends_everything_at_once(launch):
    run = launch(2, "stubborn").when_ready(2)
    os.killpg(run.process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert len(run.left()) >= 6  # supervisor, agent, two ranks with a child each: still saving, for all we know
    (run.folder / "checkpoints/step-00000007").mkdir(parents=True)
    begun = time.monotonic()
    os.killpg(run.process.pid, signal.SIGINT)
    code, said = run.end()
    assert code == 130 and time.monotonic() - begun < 5
    assert said.splitlines()[-1] == (
        "ended at once; the last checkpoint is step-00000007. To go on from it: dist-train train --resume ."
    )


def test_a_signal_before_there_is_anything_to_save(launch):
    run = launch(2, "train")
    until((run.folder / "logs").exists)
    os.kill(run.process.pid, signal.SIGINT)
    code, said = run.end()
    assert code == 130 and "Traceback" not in said


def test_sigusr2_reaches_the_ranks_and_ends_nothing(launch):
    run = launch(1, "train", "--seconds", "4").when_ready(1)
    os.kill(run.process.pid, signal.SIGUSR2)
    until(lambda: "save and go on" in (run.folder / "logs" / "rank0.log").read_text(), 3)
    assert run.end()[0] == 0


# ---------------------------------------------------------------- nothing survives, nothing listens, nothing differs


@pytest.mark.parametrize("action", ["stubborn", pytest.param("go-on", marks=pytest.mark.long)])
def test_nothing_outlives_a_killed_supervisor(launch, action):
    run = launch(2, action).when_ready(2)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    until(lambda: run.left() == [], 5)


def test_a_single_node_listens_on_loopback_only(launch):
    run = launch(2, "go-on", "--gloo").when_ready(2)
    addresses = [address for pid in run.left() for address in listening(pid)]
    assert addresses and set(addresses) == {"0100007F"}
    os.kill(run.process.pid, signal.SIGINT)
    run.end()


def listening(pid: int) -> list[str]:
    """Addresses, as /proc/net/tcp writes them, that a process listens on."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except OSError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.append(fields[1].partition(":")[0])
    return found


def test_a_live_run_keeps_its_directory(launch):
    first = launch(1, "train").when_ready(1)
    code, said = launch(1, "train").end()
    assert code == 3 and f"belongs to a live run: process {first.process.pid} on " in said
    os.kill(first.process.pid, signal.SIGTERM)
    first.process.wait(PATIENCE)


def test_ranks_see_what_torchrun_shows_them(launch, tmp_path):
    run = launch(2, "environment")
    assert run.end() == (0, "")
    theirs = tmp_path / "torchrun"
    theirs.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [str(PROGRAMS / "ranks.py"), "environment", str(theirs)]
    subprocess.run([*command, *program], check=True, env=environment, timeout=PATIENCE, cwd=tmp_path)
    for rank in range(2):
        ours, path, words = json.loads((run.folder / f"environment{rank}.json").read_text())
        reference, reference_path, reference_words = json.loads((theirs / f"environment{rank}.json").read_text())
        added = {"MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONUNBUFFERED", "GLOO_SOCKET_IFNAME"}
        added |= {"NCCL_SOCKET_IFNAME", "LAUNCH_TEST"}
        added |= {"KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"}  # by scikit-learn, which the config has preloaded
        assert set(ours) - set(reference) <= added
        assert set(reference) <= set(ours)
        own = {"MASTER_PORT", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE", "PWD", "OLDPWD", "_"}
        own |= {"TORCHELASTIC_USE_AGENT_STORE"}  # ours is always shared: one listener less
        own |= {"TORCHELASTIC_SIGNALS_TO_HANDLE"}  # for the agent: here the supervisor handles them
        own |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING"}  # torch's own default, where torchrun has another
        assert [name for name in set(reference) - own if ours[name] != reference[name]] == []
        assert path == reference_path
        assert words[:2] == reference_words[:2]


def test_logs_have_every_rank_and_the_console_the_first(launch):
    run = launch(2, "train", "--seconds", "0.1")
    out, _ = run.process.communicate(timeout=PATIENCE)
    assert out == "hello from rank 0, resume none\n"
    for rank in range(2):
        assert (run.folder / "logs" / f"rank{rank}.log").read_text() == f"hello from rank {rank}, resume none\n"
