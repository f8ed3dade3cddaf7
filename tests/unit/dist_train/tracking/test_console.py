"""What a user sees: on a real terminal, in a pipe, without Unicode, and with nobody reading."""

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "tests.unit.dist_train.tracking.runs"]


def _environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NO_COLOR", "FORCE", "PYTHONIO"))}
    return {**kept, "TERM": "xterm-256color", **more}


def _on_terminal(*arguments: str, columns: int = 120, **environment: str) -> str:
    """Everything that arrives at a pseudo-terminal."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=_environment(**environment)
    )
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # EIO: the other end is closed
            break
        seen += chunk
    os.close(ours)
    process.wait()
    return seen.decode().replace("\r\n", "\n")


def _screen(seen: str) -> list[str]:
    """The lines that stay on the screen: colours gone, and of a line redrawn in place the last state."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    return [line.rsplit("\r\x1b[K", 1)[-1] for line in plain.split("\n")]


def _piped(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, env=_environment(**environment), timeout=60)


def test_a_terminal_has_a_bar_while_it_runs_and_clean_lines_after(tmp_path: Path) -> None:
    seen = _on_terminal(str(tmp_path / "run"))
    screen = _screen(seen)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    assert re.search(r"epoch .*━.*\d+/40 steps  loss 0.\d+  acc .* samples/s  0:00", plain)
    assert not any("steps" in line for line in screen), "the bar must be gone at the end"
    assert screen[0].startswith(
        "demo · cnn 0.1 M parameters · 2 ranks on CPU (gloo) · global batch 32 = 4 microbatches"
    )
    assert screen[0].endswith("1,437 train / 360 eval")
    figures = "accuracy 97.6 %  precision 97.6  recall 97.6  F1 97.6"
    assert f"★ epoch 4   train loss 2.94e-05  loss 0.025   {figures}  0.0 s" in screen
    assert "✓ done in 12 s: accuracy 97.6 %  (best at epoch 4)   precision 97.6  recall 97.6  F1 97.6" in screen
    assert any(re.match(r"  checkpoint  .*/run/checkpoints/step-00000040  \(the best\)$", line) for line in screen)
    assert re.match(r"  report      .*/run/report.html$", [line for line in screen if line][-1])
    assert "printed by the user's code" in screen
    assert "worried" not in seen
    assert "\x1b[?25l" not in seen, "a hidden cursor stays hidden when a process is killed"


def test_colours_are_never_the_only_carrier(tmp_path: Path) -> None:
    coloured = _on_terminal(str(tmp_path / "run"))
    plain = _on_terminal(str(tmp_path / "run"), NO_COLOR="1")
    assert "\x1b[1;32m" in coloured and not re.search(r"\x1b\[[0-9;]*[34]\d", plain)
    assert len(marks := [line[:11] for line in _screen(coloured) if "epoch" in line]) > 4
    assert marks == [line[:11] for line in _screen(plain) if "epoch" in line]


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, columns: int) -> None:
    """But for one with a path, which is never cut."""
    seen = re.sub(r"\x1b\[[0-9;]*m", "", _on_terminal(str(tmp_path / "run"), columns=columns))
    states = [part for line in seen.split("\n") for part in line.split("\r\x1b[K")]
    assert [state for state in states if len(state) >= columns and str(tmp_path) not in state] == []
    bars = [state for state in states if state.startswith("epoch ") and "loss" in state]
    assert bars and all(re.search(r"  loss [\d.e-]+(  |$)", bar) for bar in bars)
    assert all(re.search(r"  acc \d\d\.\d %(  |$)", bar) for bar in bars[-3:]) or columns < 60


def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    seen = _on_terminal(str(tmp_path / "run"), TERM="dumb")
    assert "\x1b" not in seen and " step 40/40 epoch 4 " in seen


def test_a_traceback_starts_on_a_line_of_its_own(tmp_path: Path) -> None:
    screen = _screen(_on_terminal(str(tmp_path / "run"), "raise=1"))
    assert "Traceback (most recent call last):" in screen
    assert "ValueError: the user's code failed" in screen


def test_a_pipe_has_one_line_an_interval_and_stdout_none_of_it(tmp_path: Path) -> None:
    done = _piped(str(tmp_path / "run"), "modules=1")
    lines = done.stderr.decode().splitlines()
    assert done.stdout == b"printed by the user's code\n"
    train = [line for line in lines if re.match(r"\d\d:\d\d:\d\d step", line)]
    assert [re.search(r" step (\d+)/40 ", line)[1] for line in train] == [str(step) for step in range(5, 41, 5)]
    assert re.fullmatch(r"[\d:]{8} step 40/40 epoch 4 loss [\d.e-]+ lr 0 [\d,]+ samples/s", train[-1])
    evaluations = [line for line in lines if re.match(r"\d\d:\d\d:\d\d evaluation step \d+ epoch ", line)]
    assert len(evaluations) == 4 and all(re.search(r" \d\.\d s \(best\)$", line) for line in evaluations)
    assert "✓ done in 12 s: accuracy 97.6 %" in done.stderr.decode()
    assert not {"rich", "wandb", "torch"} & set((tmp_path / "run" / "modules.txt").read_text().split())


def test_without_unicode_everything_is_ascii(tmp_path: Path) -> None:
    done = _piped(str(tmp_path / "run"), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    said = done.stderr.decode("ascii")
    assert "demo - cnn 0.1 M parameters" in said and "ok done in 12 s" in said and "\\" not in said


def test_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    said = _piped(str(tmp_path / "run"), "status=stopped", "last=20").stderr.decode()
    assert re.search(
        r"^stopped\. To go on: dist-train train --resume \S*/run   \(same bits as if it had not stopped\)$", said, re.M
    )


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_without_stderr_the_run_ends_well(tmp_path: Path, redirection: str) -> None:
    command = f'exec "$0" -m tests.unit.dist_train.tracking.runs "$1" {redirection}'
    done = subprocess.run(["bash", "-c", command, sys.executable, str(tmp_path)], stdout=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 44


def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PROGRAM, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=writing, timeout=60)
    os.close(writing)
    assert done.returncode == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 44


def test_a_reader_that_does_not_read_holds_nothing_up(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    begun = time.monotonic()
    done = subprocess.run([*PROGRAM, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=writing, timeout=60)
    os.close(reading)
    os.close(writing)
    assert done.returncode == 0 and time.monotonic() - begun < 30
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 44
