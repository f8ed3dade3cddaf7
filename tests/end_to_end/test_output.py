"""One clean console: what ranks print reaches terminal and logs, whole; and no console, however bad, holds them up."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_launcher import PROGRAMS, ROOT, listening, until

PATIENCE = 120
"""Seconds for anything to happen; a machine under load takes long to import torch."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a launch of printing_ranks.py, in a session of its own; its processes end with it."""
    begun: list[subprocess.Popen] = []

    def start(action: str, flags: dict, **settings) -> subprocess.Popen:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)  # another node of the same launch may have made it
        program = [str(PROGRAMS / "printing_ranks.py"), action, str(folder)]
        command = [sys.executable, str(PROGRAMS / "launch_script.py"), str(folder), json.dumps(flags), *program]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "LAUNCH_TEST": str(tmp_path)}
        begun.append(subprocess.Popen(command, env=environment, start_new_session=True, cwd=folder, **settings))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


class Terminal:
    """A terminal of ours, with somebody in front of it who reads everything."""

    def __init__(self, columns: int) -> None:
        self._ours, self.theirs = pty.openpty()
        self.shown = b""
        self._closed = False
        self.resize(columns)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._closed:
            if select.select([self._ours], [], [], 0.02)[0]:
                self.shown += os.read(self._ours, 65_536)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))

    def text(self) -> str:
        return self.shown.decode()

    def close(self) -> None:
        """Hangs up: whoever still writes to it gets an error."""
        self._closed = True
        self._reader.join()
        os.close(self._ours)
        os.close(self.theirs)


def log_of(run: Path, rank: int) -> str:
    return (run / "logs" / f"rank{rank}.log").read_text()


def test_a_terminal_is_rank_0s_and_others_print_whole_lines_above_its_bar(start, tmp_path):
    terminal = Terminal(columns=97)
    run = tmp_path / "run"
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
    process = start("on-a-terminal", {"nproc_per_node": "2", "ranks": "0,1"}, **streams)
    until(lambda: (run / "begun0").exists(), PATIENCE)
    terminal.resize(61)
    until(lambda: "half way" in terminal.text(), PATIENCE)
    (run / "half").touch()
    assert process.wait(PATIENCE) == 0
    until(lambda: "50/50 of rank 0 |██████████|\r\n" in terminal.text(), PATIENCE)
    shown = terminal.text()
    terminal.close()
    assert "terminals [True, True] size (97, 40)\r\n" in shown and "resized to (61, 40)\r\n" in shown
    assert "[rank1]: terminals of rank 1 [False, False]\r\n" in shown
    for native in ("printf of", "child of", "descriptor of"):
        assert f"{native} rank 0\r\n" in shown and f"[rank1]: {native} rank 1\r\n" in shown
        assert f"{native} rank 0\n" in log_of(run, 0) and f"{native} rank 1\n" in log_of(run, 1)
    bar = "\rhalf way |█████     |"
    line = re.findall(r"\r\x1b\[K(?:\[rank1\]: line \d+ of rank 1\r\n)+" + re.escape(bar), shown)
    assert "".join(line).count("[rank1]") == 20  # each time, the bar made room and was drawn again
    states = [f"\r{step:3}/50 of rank 0" for step in range(1, 51)]
    assert [state for state in states if state not in shown] == []  # every state of the bar, and one of them in the log
    assert log_of(run, 0).splitlines()[-1] == " 50/50 of rank 0 |██████████|"
    assert log_of(run, 0).count("/50 of rank 0") == 1 and "\x1b" not in log_of(run, 0)


def test_of_several_nodes_each_shows_whole_lines_even_on_a_terminal(start, tmp_path):
    """srun --unbuffered gives each node's launcher a terminal of its own, and writes what both say to one console."""
    out, err, other = Terminal(80), Terminal(80), Terminal(80)
    nodes: dict[str, Any] = {"nnodes": "2", "nproc_per_node": "1", "ranks": "all", "master_addr": "127.0.0.1"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        nodes["master_port"] = free.getsockname()[1]
    first = start("begin-a-line", {**nodes, "node_rank": 0}, stdout=out.theirs, stderr=err.theirs)
    second = start("begin-a-line", {**nodes, "node_rank": 1}, stdout=other.theirs, stderr=other.theirs)
    until(lambda: "meanwhile" in err.text(), PATIENCE)
    assert "begun" not in out.text()  # what another node says now would stand in the midst of it
    (tmp_path / "run/end").touch()
    assert first.wait(PATIENCE) == 0 and second.wait(PATIENCE) == 0
    until(lambda: "line of rank 0, begun and ended" in out.text(), PATIENCE)
    until(lambda: "[rank1]: line of rank 1, begun" in other.text(), PATIENCE)
    for terminal in (out, err, other):
        terminal.close()


def test_the_last_words_of_ranks_that_die_are_kept_and_lines_are_whole(start, tmp_path):
    flags = {"nproc_per_node": "3", "ranks": "all"}
    process = start("die", flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode in (3, 10) and "✗ rank" in said
    shown = said.partition("✗ rank")[0].splitlines()  # without the verdict, which quotes a log
    for rank in range(3):
        lines = [f"<rank {rank} line {number}>" for number in range(300)]
        words = f"last words of rank {rank}"
        prefix = f"[rank{rank}]: " if rank else ""
        bar = f"100/100 of rank {rank} |██████████|"
        log = log_of(tmp_path / "run", rank).splitlines()
        assert [line for line in log if line.startswith("<")] == lines
        assert words in log and "y" * 50_000 in log
        assert [line for line in log if "/100" in line] == [bar]
        assert [line for line in out.splitlines() if f"<rank {rank} " in line] == [f"{prefix}{line}" for line in lines]
        assert f"{prefix}{words}" in out.splitlines()
        assert [line for line in shown if line.endswith(bar)] == [f"{prefix}{bar}"]
    assert "Fatal Python error: Segmentation fault" in log_of(tmp_path / "run", 2)
    assert "Segmentation fault" not in out
    assert "/100" not in out and not any("<rank" in line for line in shown)  # stdout and stderr stay two


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """One that nobody reads."""
    reading, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(full, b"x" * 4096):
            pass
    os.set_blocking(full, True)
    yield full
    os.close(full)
    os.close(reading)


def test_consoles_that_take_nothing_hold_nobody_up_and_logs_stay_below_their_size(start, tmp_path, full_pipe):
    left, closed = os.pipe()
    os.close(left)
    process = start("flood", {"nproc_per_node": "2", "log_size": "1MB"}, stdout=full_pipe, stderr=closed)
    os.close(closed)
    assert process.wait(PATIENCE) == 0
    logs = tmp_path / "run" / "logs"
    for rank in range(2):
        assert "the last line" in log_of(tmp_path / "run", rank).splitlines()  # the other stream's may follow
        sizes = [(logs / name).stat().st_size for name in (f"rank{rank}.log", f"rank{rank}.log.1")]
        assert max(sizes) <= 1_000_000 < sum(sizes)


def test_no_process_waits_for_a_stuck_console_when_the_launcher_was_killed(start, tmp_path, full_pipe):
    process = start("flood-without-end", {"nproc_per_node": "1", "log_size": "1MB"}, stdout=full_pipe, stderr=full_pipe)
    until(lambda: (tmp_path / "run" / "flooded0").exists(), PATIENCE)
    assert len([*processes_of(str(tmp_path))]) >= 4  # supervisor, agent, relay, rank
    process.kill()
    until(lambda: not [*processes_of(str(tmp_path))], PATIENCE)


# ---------------------------------------------------------------- trainings

CONFIG = """
name: digits
data: {name: digits}
model: {name: cnn, width: 8, dropout: 0.1}
optimizer: {name: sgd, lr: 0.1}
batch: {microbatches: 4, global_size: 64}
train: {duration: 6 epochs}
tracking: {every: 2 steps, wandb: {mode: WANDB}}
"""
OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")
FILL = 'mount -t tmpfs -o size=4k none /mnt && echo full > /mnt/file && exec "$@"'
SECRETS = {
    "WANDB_API_KEY": "c0ffee" * 7,
    "HF_TOKEN": "hf_canaryOfHuggingFace",
    "AWS_SECRET_ACCESS_KEY": "canary/of/amazon",
    "DATABASE_PASSWORD": "canary-of-a-database",
    "SIGNING_KEY": "canary-of-a-signature",
    "CLIENT_SECRET": "canary-of-a-client",
}


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a training of two ranks; its processes end with it."""
    begun: list[subprocess.Popen] = []

    def start(run: Path, *flags: str, wandb: str = "disabled", before: tuple[str, ...] = (), **settings):
        run.parent.mkdir(parents=True)
        config = run.parent / "config ü.yaml"
        config.write_text(CONFIG.replace("WANDB", wandb))
        words = ["train", str(config), "--run-dir", str(run), "--nproc-per-node", "2", *flags]
        command = [*before, sys.executable, "-m", "dist_train.launch", *words]
        settings.setdefault("env", os.environ)
        settings["env"] = {**settings["env"], "PYTHONPATH": str(ROOT), "LAUNCH_TEST": str(tmp_path)}
        begun.append(subprocess.Popen(command, start_new_session=True, **settings))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def processes_of(mark: str) -> Iterator[Path]:
    """Of a launch, the supervisor and all below it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"LAUNCH_TEST={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                yield process


def test_a_training_goes_on_where_nothing_is_as_it_should_be_and_tells_no_secret(train, tmp_path):
    """No stdin, stdout or stderr; no HOME; a full TMPDIR; LANG=C; a working directory that takes no file; umask 077."""
    run = tmp_path / "ünï codé\nand a new line" / ("n" * 200)
    environment = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("LC_")}
    environment |= {"LANG": "C", "LC_ALL": "C", "TMPDIR": "/mnt", **SECRETS}
    words = ("--ranks", "all", "loader.workers=1", "train.duration=1 epochs")
    before = ("sh", "-c", 'umask 077; exec "$@" <&- >&- 2>&-', "sh")
    if subprocess.run([*OWN_MOUNTS, "true"]).returncode == 0:
        before = (*OWN_MOUNTS, "sh", "-c", FILL, "sh", *before)
    else:  # a folder that takes no file either
        environment["TMPDIR"] = "/proc"
    process = train(run, *words, wandb="offline", before=before, env=environment, cwd="/proc")
    listeners: set[str] = set()
    commands: set[bytes] = set()
    while process.poll() is None:
        for member in processes_of(str(tmp_path)):
            with contextlib.suppress(OSError):
                commands.add((member / "cmdline").read_bytes())
                listeners.update(listening(int(member.name)))
        time.sleep(0.3)
    assert process.returncode == 0
    assert json.loads((run / "state.json").read_text())["status"] == "done"
    assert "done after" in log_of(run, 0) and (run / "logs" / "rank1.log").is_file()
    assert listeners == {"0100007F"}
    for word in (b"fork_server.py", b"dist_train.tracking"):
        assert any(word in command for command in commands)
    files = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("wandb" in str(path) for path in files) and any(path.name == "agent.json" for path in files)
    assert [path for path in [run, *files] if path.stat().st_mode & 0o077] == []
    written = [*commands, *(path.read_bytes() for path in files)]
    assert [name for name, secret in SECRETS.items() if any(secret.encode() in text for text in written)] == []


MOMENTS = [0, *(pytest.param(step, marks=pytest.mark.long) for step in range(8, 80, 8))]


@pytest.mark.parametrize("step", MOMENTS)
def test_a_training_goes_on_when_its_terminal_is_closed(train, tmp_path, step):
    terminal = Terminal(columns=120)
    run = tmp_path / "runs" / "run"
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
    process = train(run, cwd=tmp_path, env={**os.environ, "TERM": "xterm-256color"}, **streams)
    bar = re.compile(r"━.* (\d+)/132 steps")
    until(lambda: any(int(drawn) >= step for drawn in bar.findall(terminal.text())), PATIENCE)
    terminal.close()
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(PATIENCE) == 0
    assert "✓" not in terminal.text()  # it had not been done
    assert json.loads((run / "state.json").read_text())["status"] == "done"
    log = log_of(run, 0)
    assert "2 ranks on CPU (gloo)" in log and "✓ done in" in log
    assert "━" not in log.partition("done in")[0] or log.count("━") < 200  # of the bar, no more than its last states
