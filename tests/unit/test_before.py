"""What a start has written is taken back, and nothing else is touched."""

import os
from pathlib import Path

from dist_train.config.before import IN_LOG_DIR, SMALL, Before


def content(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def start(run: Path) -> None:
    """Writes as the launcher, the ranks and the trackers do: anew, in place of the old, or behind it."""
    for folder in ("generations/2/errors", "logs", ".lease", "wandb/offline-run-2", "checkpoints"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "state.json", ".lock-node0", ".lock-node1", "generations/2/verdict.json"):
        (run / name).write_text("of the new start")
    for name in ("lives.jsonl", "logs/rank0.log", "logs/agent.log"):
        with open(run / name, "a") as file:
            file.write("one line more\n")
    (run / ".lease" / "00000001").unlink(missing_ok=True)
    (run / ".lease" / "00000002").write_text("another")
    (run / "wandb" / "latest-run").unlink(missing_ok=True)
    (run / "wandb" / "latest-run").symlink_to("offline-run-2")


def test_a_folder_that_was_there_is_as_it_was(tmp_path):
    run = tmp_path / "run"
    for folder in ("generations/1", "logs", ".lease", "wandb/offline-run-1", "checkpoints/step-00000004", "slurm"):
        (run / folder).mkdir(parents=True)
    files = ("config.yaml", "state.json", ".lock-node0", "lives.jsonl", ".lease/00000001", "mine.txt", "slurm/1.log")
    for name in files:
        (run / name).write_text(name)
    (run / "logs" / "rank0.log").write_bytes(b"x" * (SMALL + 1))
    (run / "wandb" / "latest-run").symlink_to("offline-run-1")
    was, before = content(tmp_path), Before(run)
    start(run)
    (run / "slurm" / "1.log").write_text("SLURM's own, which goes on")
    (run / "more.txt").write_text("somebody else's")
    before.put_back()
    was |= {"run/slurm/1.log": b"SLURM's own, which goes on", "run/more.txt": b"somebody else's"}
    assert content(tmp_path) == was


def test_a_folder_that_was_not_there_goes_with_what_was_made_above_it(tmp_path):
    before = Before(tmp_path / "a" / "b" / "run")
    start(tmp_path / "a" / "b" / "run")
    (tmp_path / "a" / "other").mkdir()
    before.put_back()
    assert content(tmp_path) == {"a": None, "a/other": None}
    before = Before(tmp_path / "a" / "logs", IN_LOG_DIR)
    before.put_back()  # where nothing came to be made
    assert content(tmp_path) == {"a": None, "a/other": None}


def test_another_node_removes_what_it_has_made_once_that_is_empty(tmp_path):
    run = tmp_path / "a" / "run"
    first = Before(run)
    run.mkdir(parents=True)
    other = Before(run)
    (run / ".lock-node1").touch()
    assert not first.remove_empty() and other.remove_empty() and run.exists()
    other.put_back()  # of the first node, for which the folder was there
    assert run.is_dir() and first.remove_empty() and content(tmp_path) == {}


def test_what_was_saved_is_never_taken_back(tmp_path):
    run = tmp_path / "run"
    for saved, kept in (("step-00000000", False), ("step-00000010", True)):
        before = Before(run)
        start(run)
        (run / "checkpoints" / saved).mkdir()
        before.put_back()
        assert (run / "checkpoints" / saved).is_dir() is kept
