"""`dist-train checkpoints`, as a person and as a program uses it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_train.checkpoint.store import CheckpointStore

ROOT = Path(__file__).parents[4]
FILES = {"model.safetensors": b"m" * 2_000_000, "state.json": b"{}"}


@pytest.fixture
def run_dir(tmp_path):
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=3, generation=2)
    for step in (10, 1200):
        store.save(step, FILES, {"world_size": 4, "best_step": 10})
    return tmp_path / "run"


def command(*arguments, code=0):
    """Returns stdout and stderr."""
    words = [Path(sys.executable).parent / "dist-train", "checkpoints", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def damage(run_dir, step, name):
    (run_dir / "checkpoints" / f"step-{step:08d}" / name).write_bytes(b"[]")


def test_the_table_has_a_line_for_each(run_dir):
    out, said = command(run_dir)
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["step", "saved", "size", "ranks", "generation", "best", "state"]
    assert [(row[0], row[3:]) for row in rows[1:]] == [
        ("10", ["2.0", "MB", "4", "2", "best", "not", "verified"]),
        ("1,200", ["2.0", "MB", "4", "2", "not", "verified"]),
    ]
    assert said == ""


def test_json_says_the_same(run_dir):
    found = json.loads(command(run_dir, "--json", "--verify")[0])
    assert abs(found[1].pop("saved") - time.time()) < 600
    assert found[1] == {
        "step": 1200,
        "path": str(run_dir / "checkpoints" / "step-00001200"),
        "sound": True,
        "damage": None,
        "bytes": 2_000_002,
        "world_size": 4,
        "generation": 2,
        "best": False,
    }
    assert [item["best"] for item in found] == [True, False]


@pytest.mark.parametrize("name, how", [("state.json", "sha256 differs"), ("manifest.json", "unreadable (TypeError)")])
def test_a_damaged_one_is_named_with_its_file_and_exit_code_4(run_dir, name, how):
    damage(run_dir, 1200, name)
    out, said = command(run_dir, "--verify", code=4)
    assert f"DAMAGED: {name}: {how}" in out.splitlines()[2] and out.splitlines()[1].endswith("sound")
    assert said == "damaged: step-00001200; a resume takes the newest sound one\n"
    found = json.loads(command(run_dir, "--verify", "--json", code=4)[0])
    assert [item["sound"] for item in found] == [True, False] and found[1]["damage"] == f"{name}: {how}"
    assert [item["best"] for item in found] == [True, False]


def test_one_checkpoint_can_be_asked_about_alone(run_dir):
    damage(run_dir, 1200, "state.json")
    out, _ = command(run_dir / "checkpoints" / "step-00000010", "--verify")
    assert len(out.splitlines()) == 2
    command(run_dir / "checkpoints" / "step-00001200", "--verify", code=4)


def test_a_run_without_checkpoints_is_no_error(tmp_path):
    assert command(tmp_path, "--json") == ("[]\n", f"no checkpoints in {tmp_path}\n")
    assert "does not exist" in command(tmp_path / "nowhere", code=2)[1]


def test_it_needs_no_torch():
    script = "import sys, dist_train.commands.checkpoints; print(*{'torch', 'numpy', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
