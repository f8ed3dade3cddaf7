"""What a start has written is taken back, and nothing else is touched."""

import os
import socket
from pathlib import Path

from dist_train.rundir.snapshot import IN_LOG_DIR, SMALL, FolderSnapshot


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
    for folder in ("generations/2/errors", "logs", ".lease", "wandb/offline-run-2-a1", "checkpoints"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    for name in (
        "config.yaml",
        "state.json",
        ".lock-node0",
        ".lock-node1",
        "generations/2/verdict.json",
        "logs/rank1.log.1",
    ):
        (run / name).write_text("of the new start")
    for name in ("lives.jsonl", "logs/rank0.log", "logs/agent.log"):
        with open(run / name, "a") as file:
            file.write("one line more\n")
    (run / ".lease" / "00000001").unlink(missing_ok=True)
    (run / ".lease" / "00000002").write_text("another")
    (run / "wandb" / "latest-run").unlink(missing_ok=True)
    (run / "wandb" / "latest-run").symlink_to("offline-run-2-a1")
    (run / "wandb" / "id.txt").write_text("a1\n")
    (run / "tensorboard").mkdir(exist_ok=True)
    (run / "tensorboard" / f"events.out.tfevents.17.{socket.gethostname()}.{os.getpid()}.0").touch()
    (run / "tensorboard" / "events.out.tfevents.17.rank-s.99.0").touch()
    (run / "generations/2/ranks").mkdir()
    (run / "generations/2/ranks/0.json").write_text('{"host": "rank-s", "pid": 99, "started": 1}')


def test_a_folder_that_was_there_is_as_it_was(tmp_path):
    run = tmp_path / "run"
    for folder in ("generations/1", "logs", ".lease", "wandb/offline-run-1-a1", "checkpoints/step-00000004", "slurm"):
        (run / folder).mkdir(parents=True)
    files = ("config.yaml", "state.json", ".lock-node0", "lives.jsonl", ".lease/00000001", "mine.txt", "slurm/1.log")
    for name in files:
        (run / name).write_text(name)
    (run / "logs" / "rank0.log").write_bytes(b"x" * (SMALL + 1))
    (run / "wandb" / "latest-run").symlink_to("offline-run-1-a1")
    was, before = content(tmp_path), FolderSnapshot(run)
    start(run)
    (run / "slurm" / "1.log").write_text("SLURM's own, which goes on")
    (run / "more.txt").write_text("somebody else's")
    before.restore()
    was |= {"run/slurm/1.log": b"SLURM's own, which goes on", "run/more.txt": b"somebody else's"}
    assert content(tmp_path) == was


def test_a_folder_that_was_not_there_goes_with_what_was_made_above_it(tmp_path):
    before = FolderSnapshot(tmp_path / "a" / "b" / "run")
    start(tmp_path / "a" / "b" / "run")
    (tmp_path / "a" / "other").mkdir()
    before.restore()
    assert content(tmp_path) == {"a": None, "a/other": None}
    before = FolderSnapshot(tmp_path / "a" / "logs", IN_LOG_DIR)
    before.restore()  # where nothing came to be made
    assert content(tmp_path) == {"a": None, "a/other": None}


def test_another_node_removes_what_it_has_made_once_that_is_empty(tmp_path):
    run = tmp_path / "a" / "run"
    first = FolderSnapshot(run)
    (run / "generations").mkdir(parents=True)
    (run / ".lock-node1").touch()
    other = FolderSnapshot(run)  # of the first node, for which the folder was there
    (run / "generations" / "1").mkdir()
    assert not first.remove_empty()
    other.restore()
    assert not first.remove_empty() and content(run) == {".lock-node1": b""}
    first.remove({".lock-node1", "rank1.log"})
    other.restore()  # which knew it, and does not bring it back
    assert first.remove_empty() and content(tmp_path) == {}


def test_the_first_node_removes_a_generation_of_this_start_that_another_was_faster_to_make(tmp_path):
    another = FolderSnapshot(tmp_path / "run")
    for number in (1, 2):
        (tmp_path / "run" / "generations" / str(number) / "nodes").mkdir(parents=True)
    (tmp_path / "run" / "generations" / "1" / "nodes" / "node0.json").touch()  # of an earlier start
    first = FolderSnapshot(tmp_path / "run")
    (tmp_path / "run" / "generations" / "2" / "nodes" / "node0.json").touch()
    first.restore()
    assert [path.name for path in (tmp_path / "run" / "generations").iterdir()] == ["1"]
    assert not another.remove_empty()


def test_what_another_start_did_before_the_folder_was_ours_is_not_taken_back(tmp_path):
    run = tmp_path / "run"
    before = FolderSnapshot(run)
    run.mkdir()
    (run / "config.yaml").write_text("of the start before, whose life was watched to its end")
    (run / ".lock-node0").touch()
    before.look_again()
    start(run)
    before.restore()
    assert content(tmp_path) == {
        "run": None,
        "run/config.yaml": b"of the start before, whose life was watched to its end",
    }


def test_what_was_saved_is_never_taken_back(tmp_path):
    run = tmp_path / "run"
    for saved, kept in (("step-00000000", False), ("step-00000010", True)):
        before = FolderSnapshot(run)
        start(run)
        (run / "checkpoints" / saved).mkdir()
        before.restore()
        assert (run / "checkpoints" / saved).is_dir() is kept


def test_what_other_programs_put_there_meanwhile_stays(tmp_path):
    """In a folder that was missing, and in one that was there: none of it is a name of this start."""
    others = ("logs/train.log", "logs/agents.txt", "nested/config.yaml", "wandb/run-3-b2/x", "checkpoints/step-1.pt")
    others += ("tensorboard/events.out.tfevents.17.elsewhere.99.0", "generations/notes", "checkpoints/best/x")
    for run in (tmp_path / "new", tmp_path / "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        before = FolderSnapshot(run)
        start(run)
        for name in others:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(name)
        (run / "wandb" / "latest-run").unlink()
        (run / "wandb" / "latest-run").symlink_to("run-3-b2")
        before.restore()
        left = {str(path.relative_to(run)) for path in run.rglob("*") if not path.is_dir() or path.is_symlink()}
        assert left == {*others, "wandb/latest-run"}


def test_in_a_folder_of_logs_others_are_left_alone(tmp_path):
    (tmp_path / "train.log").write_text("its head\n")
    before = FolderSnapshot(tmp_path, IN_LOG_DIR)
    ours = ("preload.log", "rank0.log", "rank12.log.1", "agent.log", "agent-node1.log")
    for name in ("train.log", "server.log", "server.log.1", *ours):
        with open(tmp_path / name, "a") as file:
            file.write("why it failed\n")
    before.restore()
    assert sorted(content(tmp_path)) == ["server.log", "server.log.1", "train.log"]
    assert (tmp_path / "train.log").read_text() == "its head\nwhy it failed\n"


def test_what_was_there_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("old")
    path.chmod(0o640)
    before = FolderSnapshot(tmp_path)
    path.write_text("new")
    with open(path) as reader:
        before.restore()
        assert (reader.read(), path.read_text(), path.stat().st_mode & 0o777) == ("new", "old", 0o640)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_copy_of_a_checkpoint_is_none_of_the_run(tmp_path):
    before = FolderSnapshot(tmp_path)
    (tmp_path / "checkpoints" / "step-00000100-copy").mkdir(parents=True)
    (tmp_path / "state.json").touch()
    before.restore()
    assert list(content(tmp_path)) == ["checkpoints", "checkpoints/step-00000100-copy"]
