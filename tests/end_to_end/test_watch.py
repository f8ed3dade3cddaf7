"""A training in its terminal, and from another one: what both show, at their widths, of one real run."""

import re
import signal
import subprocess

import pytest

from tests.end_to_end.test_launcher import until
from tests.end_to_end.test_output import Terminal
from tests.end_to_end.test_training import BIN, CONFIG, ENVIRONMENT

PATIENCE = 120
WAITS = """
import time
from pathlib import Path
import torch
class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
    def forward(self, inputs):
        while not Path("go").exists():
            time.sleep(0.01)
        return super().forward(inputs.flatten(1))
"""
FRAME = re.compile(r"\r\x1b\[K|\r\x1b\[\d+A\x1b\[J|\r\x1b\[J|\r?\n")


def lines(terminal: Terminal) -> list[str]:
    """Every line and every state of a line that was drawn over."""
    return FRAME.split(re.sub(r"\x1b\[[0-9;]*m", "", terminal.text()))


@pytest.fixture
def start(tmp_path):
    """Starts `dist-train …` in a terminal of so many columns; None is a pipe."""
    begun, terminals = [], []

    def start(*words: str, columns: int | None = None) -> tuple[subprocess.Popen, Terminal | None]:
        terminal = None if columns is None else Terminal(columns)
        output = subprocess.PIPE if terminal is None else terminal.theirs
        begun.append(
            subprocess.Popen(
                [BIN / "dist-train", *words],
                cwd=tmp_path,
                env={
                    **{name: value for name, value in ENVIRONMENT.items() if name != "COLUMNS"},
                    "TERM": "xterm-256color",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if terminal is None else output,
                text=True,
            )
        )
        terminals.extend([terminal] if terminal else [])
        return begun[-1], terminal

    yield start
    for process in begun:
        process.kill()
        process.communicate()
    for terminal in terminals:
        terminal.close()


def test_a_run_is_seen_in_its_own_terminal_and_from_others_which_leave_it_alone(start, tmp_path):
    own_model = CONFIG.replace("{name: cnn, width: 8, dropout: 0.1}", "{name: 'waits:Net'}")
    (tmp_path / "digits.yaml").write_text(own_model.replace("{duration: 2", "{sanity_check: false, duration: 3"))
    (tmp_path / "waits.py").write_text(WAITS)
    training, own = start("train", "digits.yaml", "--nproc-per-node", "1", "--run-dir", "runs/digits/r", columns=80)
    until((tmp_path / "runs/digits/r/environment.json").exists, PATIENCE)
    watching, other = start("watch", "runs/digits/r", "--logs", "0", columns=60)
    piped, _ = start("watch", "runs/digits/r")
    left, _ = start("watch")
    for process in (piped, left):
        assert process.stdout.readline() == "digits · waits:Net · global batch 64\n"
    until(lambda: "run  runs/digits/r" in other.text(), PATIENCE)
    (tmp_path / "go").touch()
    left.send_signal(signal.SIGINT)
    assert left.wait(PATIENCE) == 130 and "which is left alone" in left.stdout.read()
    assert [process.wait(PATIENCE) for process in (training, watching, piped)] == [0, 0, 0]
    until(lambda: "report.html\r\n" in own.text() and "report.html\r\n" in other.text(), PATIENCE)

    for terminal, columns in ((own, 80), (other, 60)):
        shown = lines(terminal)
        assert [line for line in shown if len(line) >= columns and "/" not in line.split()[-1]] == []
        epoch = re.compile(r"[★ ] epoch \d   train loss [\d.]+ +loss [\d.]+ +accuracy [\d.]+ %")
        assert sum(epoch.match(line) is not None for line in shown) == 3, "\n".join(shown)
        bar = re.compile(
            r"epoch \d/3 [━╸]+  \d+/66( steps)?(  evaluating \d+ %|  saving)?  loss [\d.]+  .*\d:\d\d(<\d:\d\d)?"
        )
        assert any(map(bar.fullmatch, shown))
    doing = " ".join(lines(own))
    assert all(what in doing for what in ("loading", "evaluating 0 %", "saving")) and "\x1b[?25l" not in own.text()
    assert re.match(r"✓ done in .*: accuracy [\d.]+ %  \(best", next(line for line in lines(own) if "done in" in line))

    curves = [line for line in lines(other) if re.search("[\u2801-\u28ff]", line)]
    assert curves and any("training loss" in line and "accuracy" in line for line in lines(other))
    assert any(re.match(r"\[rank0\]: .*accuracy", line) for line in lines(other))
    assert any(line.startswith("✓ Done. Best accuracy: ") for line in lines(other)[-4:])

    told = piped.stdout.read().splitlines()
    assert sum(" evaluation step " in line for line in told) == 3 and not any("\x1b" in line for line in told)
    steps = re.compile(r"[\d:]{8} step 66/66 epoch 3 loss [\d.]+ lr \S+ [\d,]+ samples/s.*")
    assert sum(steps.fullmatch(line) is not None for line in told) == 1
    assert sum(" step " in line and " evaluation " not in line for line in told) == 33  # every 2 steps
    assert told[-2].startswith("✓ Done. Best accuracy: ") and told[-1].endswith("runs/digits/r/report.html")
    once, _ = start("watch", "runs/digits/r")
    assert once.wait(PATIENCE) == 0 and once.stdout.read().splitlines()[-1] == told[-1]
