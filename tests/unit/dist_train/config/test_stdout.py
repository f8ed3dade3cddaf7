"""Results on stdout: a reader that leaves early, as `head` does, is no error and changes no exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
BIN = Path(sys.executable).parent
CONFIG = str(ROOT / "configs" / "digits.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "t" / "one"
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)  # damaged: it has no manifest
    (run / "state.json").write_text("{}")
    return tmp_path


def start(folder: Path, words: tuple[str, ...], stdout) -> tuple[int, str]:
    done = subprocess.run([BIN / "dist-train", *words], cwd=folder, stdout=stdout, stderr=subprocess.PIPE, timeout=100)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("config", "schema"), 0),
        (("config", "show", CONFIG), 0),
        (("runs",), 0),
        (("runs", "--json"), 0),
        (("sweep", CONFIG, "--over", "seed=0..40", "--dry-run"), 0),
        (("checkpoints", "runs/t/one"), 0),
        (("checkpoints", "runs/t/one", "--verify"), 4),
        (("config", "show", "nothing.yaml"), 2),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, tuple) else "",
)
def test_nobody_reads(folder, words, code):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        ended, said = start(folder, words, pipe)
    assert ended == code and "Error" not in said and "ignored" not in said
    assert len(said.splitlines()) <= 1


def test_a_disk_that_is_full_is_told_in_one_line(folder):
    with open("/dev/full", "wb") as full:
        assert start(folder, ("config", "schema"), full) == (2, "cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize(("program", "code"), [("pass", 14), ("raise SystemExit(17)", 10)])
def test_a_verdict_that_cannot_be_written_does_not_say_that_nothing_was_started(folder, program, code):
    (folder / "p.py").write_text(program)
    with open("/dev/full", "wb") as full:
        ended, said = start(folder, ("run", "--nproc-per-node", "1", "--json", "p.py"), full)
    assert (ended, "cannot write to stdout: No space left on device" in said) == (code, True)


def test_a_training_s_verdict_that_cannot_be_written_keeps_the_training_s_end(folder):
    train = ("train", CONFIG, "train.duration=1 step", "--nproc-per-node", "1", "--run-dir", "run", "--json")
    with open("/dev/full", "wb") as full:
        ended, said = start(folder, train, full)
    assert ended == 14 and "cannot write to stdout" in said, said
    assert json.loads((folder / "run" / "state.json").read_text())["status"] == "done"
