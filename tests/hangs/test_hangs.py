"""Each way to hang, for real: the right rank, the right line, and no alarm without a hang."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMES = 20
SHORT = "4"
"""Seconds for the default suite."""
LONG_SCRIPT, LONG_TRAINING = "60", "20"
"""Of the long one."""
CONFIG = """
name: t
data: {name: "tests.hangs.data:Stuck"}
model: {name: mlp, hidden: [8]}
loader: {workers: WORKERS, threads: THREADS}
batch: {microbatches: 4, global_size: 16}
train: {duration: 400 steps}
eval: {every: 200 steps}
checkpoint: {every: 200 steps}
tracking: {wandb: {mode: disabled}}
"""
LINE_OF = {"sleep": "LINE sleep", "loader": "LINE sleep", "gil": "LINE gil", "lock": "LINE lock", "spin": "LINE spin"}
LINE_OF |= {"skip": "LINE skip", "thread": "LINE sleep"}


@dataclass(frozen=True)
class Ended:
    """How a launch ended."""

    code: int
    said: str
    folder: Path

    @property
    def cause(self) -> dict:
        return json.loads((self.folder / "generations/1/verdict.json").read_text())["cause"]


class Launches:
    """Launchers started by a test; each is ended with all below it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._begun = folder, 0

    def run(self, command: list[str], seconds: float, **environment: str) -> Ended:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate(timeout=seconds)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGTERM)
                process.communicate()
        return Ended(process.returncode, said, self._folder / str(self._begun))

    def plain(self, action: str, ranks: int, victim: int, limit: str, seconds: float = 280, **more: str) -> Ended:
        folder = self._new()
        program = str(HERE / "launch_plain.py")
        return self.run([sys.executable, program, str(folder), str(ranks), limit, action, str(victim)], seconds, **more)

    def train(self, action: str, victim: int, *flags: str, seconds: float = 280, **more: str) -> Ended:
        folder = self._new()
        config = folder / "t.yaml"
        text = CONFIG.replace("Stuck", "StuckImages") if action == "thread" else CONFIG
        counts = {"WORKERS": int(action == "loader"), "THREADS": int(action == "thread")}
        for name, count in counts.items():
            text = text.replace(name, str(count))
        config.write_text(text)
        command = [sys.executable, "-m", "dist_train.launch", "train", str(config), "--nproc-per-node", "2", *flags]
        hang = {"HANG_ACTION": action, "HANG_VICTIM": str(victim), "HANG_FOLDER": str(folder)}
        return self.run([*command, "--run-dir", str(folder)], seconds, **hang, **more)

    def train_on_two_nodes(self, action: str, victim: int) -> list[Ended]:
        """One rank each."""
        folder = self._new()
        config = folder / "t.yaml"
        config.write_text(CONFIG.replace("WORKERS", "0").replace("THREADS", "0"))
        hang = {"HANG_ACTION": action, "HANG_VICTIM": str(victim), "HANG_FOLDER": str(folder)}
        command = [
            sys.executable,
            "-m",
            "dist_train.launch",
            "train",
            str(config),
            "--nproc-per-node",
            "1",
            "--nnodes",
            "2",
        ]
        command += ["--master-addr", "127.0.0.1", "--hang-timeout", SHORT, "--run-dir", str(folder / "run")]
        command += ["--master-port", str(free_port())]
        with ThreadPoolExecutor(2) as pool:
            nodes = [pool.submit(self.run, [*command, "--node-rank", str(n)], 280, **hang) for n in range(2)]
        return [Ended(one.result().code, one.result().said, folder / "run") for one in nodes]

    def _new(self) -> Path:
        self._begun += 1
        folder = self._folder / str(self._begun)
        folder.mkdir()
        return folder


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Launches]:
    yield Launches(tmp_path)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def line_of(action: str) -> int:
    lines = (HERE / "plain.py").read_text().splitlines()
    return next(number for number, text in enumerate(lines, 1) if LINE_OF[action] in text)


def check(ended: Ended, action: str, victim: int) -> None:
    assert ended.code == 15, ended.said
    assert (ended.folder / "ready").exists(), f"an alarm before there was a hang: {ended.said}"
    assert ended.cause["kind"] == "hang"
    assert ended.cause["rank"] == victim, ended.said
    assert f"rank {victim} is the odd one" in ended.said
    assert "✗ ended after " in ended.said and "(exit code 15). Stacks: " in ended.said.splitlines()[-1]
    if action == "stop":
        assert "stopped by a signal (state T)" in ended.said
        return
    assert ended.cause["line"] == line_of(action), ended.said
    assert f"tests/hangs/plain.py:{line_of(action)} " in ended.said


def check_stacks(ended: Ended, ranks: int) -> None:
    for rank in range(ranks):
        assert "most recent call first" in (ended.folder / f"generations/1/stacks/rank{rank}.txt").read_text()


@pytest.mark.parametrize("action", ["stop", "gil", "loader"])
def test_a_stuck_rank_of_a_script_is_named(launches, action):
    ended = launches.plain(action, 2, 1, SHORT)
    check(ended, action, 1)
    assert re.search(r"rank 0 waits in all_reduce at tests/hangs/plain.py:\d+ main\(\)", ended.said)
    if action != "stop":
        check_stacks(ended, 2)


def test_a_skipped_collective_of_a_script_is_named(launches):
    ended = launches.plain("skip", 3, 1, SHORT)
    check(ended, "skip", 1)
    assert "ranks 0, 2 wait in all_reduce" in ended.said


def test_a_stall_of_all_ranks_names_none(launches):
    ended = launches.plain("symmetric", 2, 0, SHORT)
    assert ended.code == 15 and ended.cause["ranks"] == []
    assert "no odd rank: all wait at tests/hangs/plain.py:" in ended.said and "time.sleep(600)" in ended.said


def test_a_rank_that_computes_while_the_others_wait_is_no_hang(launches):
    ended = launches.plain("evaluate", 2, 0, "2", EVALUATION_SECONDS="8")
    assert (ended.code, ended.said) == (0, "")


@pytest.mark.parametrize("action", ["spin", "loader", "thread"])
def test_a_stuck_rank_of_a_training_is_named_and_it_starts_again(launches, action):
    ended = launches.train(action, 1, "--hang-timeout", SHORT, "--max-restarts", "1" if action == "spin" else "0")
    check(ended, action, 1)
    assert "! no rank has finished a step for " in ended.said
    assert "rank 0 waits in " in ended.said
    if action == "thread":
        assert "its loading thread is at tests/hangs/plain.py" in ended.said
    if action == "spin":
        assert "starting again, attempt 2 of at most 2" in ended.said


def test_a_rank_that_is_stuck_on_another_node_is_named_by_the_first(launches):
    first, other = launches.train_on_two_nodes("sleep", 1)
    assert (first.code, other.code) == (15, 15), f"{first.said}{other.said}"
    line = line_of("sleep")
    assert re.search(rf"rank 1 is the odd one: tests/hangs/plain.py:{line} sleep_in_dataset\(\)", first.said), (
        first.said
    )
    assert "rank 0 waits in " in first.said
    assert other.said.count("no rank has finished a step") == 1 and "odd one" not in other.said


def test_a_slow_rank_is_told_while_the_run_goes_on(launches):
    ended = launches.train("slow", 1)
    assert ended.code == 0
    assert re.search(r"! rank 1 is late: .* a step in its loader \(\d+ % of a step\); all ranks wait", ended.said), (
        ended.said
    )
    assert "rank 0 is late" not in ended.said


# ---------------------------------------------------------------- long


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("action", ["stop", "sleep", "gil", "lock", "spin", "loader", "thread"])
def test_every_hang_of_a_training_is_named(launches, action):
    for number in range(TIMES):
        check(launches.train(action, number % 2, "--hang-timeout", LONG_TRAINING), action, number % 2)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("action", ["stop", "sleep", "gil", "lock", "loader", "skip"])
def test_every_hang_of_a_script_is_named(launches, action):
    """Not an endless loop, which looks like a long evaluation there, for half an hour."""
    for number in range(TIMES):
        check(launches.plain(action, 3, number % 3, LONG_SCRIPT), action, number % 3)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_long_evaluation_is_no_hang(launches):
    """Rank 0 has all of the data, and rank 1 waits for it; as often as it takes for this to last that long."""
    seconds = float(os.environ.get("HANG_TEST_SECONDS", "1200"))
    duration = f"train.duration={200 * max(1, round(seconds / 60))} steps"
    ended = launches.train("evaluate", 0, duration, seconds=3 * seconds + 300, EVALUATION_SECONDS="60")
    assert ended.code == 0 and "no rank has" not in ended.said
