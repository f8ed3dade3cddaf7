"""Going on, or refusing to."""

import json
import os
import shutil

import pytest

from dist_train.checkpoint.store import CheckpointStore
from dist_train.rundir.layout import RunDir
from dist_train.rundir.runs import newest_checkpoint
from tests.distributed.training import result, train, write_configs


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


def test_a_changed_config_is_refused_and_says_what_changed(run_ranks, folder, capfd):
    run_ranks(train, 1, folder, "base.yaml", "run", "train.stop_after=2 steps")
    before = result(folder / "run")
    assert run_ranks(train, 2, folder, "base.yaml", "run", "optimizer.lr=0.2") == [4, 4]
    assert result(folder / "run") == before
    code = run_ranks(train, 1, folder, "base.yaml", "run", "optimizer.lr=0.2", "--allow-change", "optimizer.lr")
    assert code == [0]


def test_a_damaged_checkpoint_is_passed_over(run_ranks, folder, whole):
    run_ranks(train, 1, folder, "base.yaml", "run", "checkpoint.every=4 steps", "train.stop_after=12 steps")
    newest = CheckpointStore(folder / "run" / "checkpoints").path(12) / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    assert run_ranks(train, 2, folder, "base.yaml", "run") == [0, 0]
    assert result(folder / "run") == whole
    log = (folder / "run" / "logs" / "rank0.log").read_text()
    assert "step-00000012 is damaged (optimizer.safetensors: sha256 differs), going on from step-00000011" in log


USERS = ("checkpoints/step-best-so-far", "checkpoints/step-00000009.bak", "checkpoints/.mine", "generations/1.bak")
USERS += ("generations/old", ".lease/99999999999999999999", ".lease/notes", "logs/rank0.log.bak", "metrics.jsonl.bak")


def test_names_of_the_user_s_beside_ours_count_for_nothing_and_break_nothing(run_ranks, folder, whole):
    run_ranks(train, 1, folder, "base.yaml", "run", "checkpoint.every=4 steps", "train.stop_after=9 steps")
    run = folder / "run"
    shutil.copytree(run / "checkpoints/step-00000008", run / "checkpoints/step-00000009-copy")
    for place, name in enumerate(USERS):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine") if place % 2 else (run / name).mkdir()
    assert run_ranks(train, 2, folder, "base.yaml", "run") == [0, 0]
    assert result(run) == whole
    assert all((run / name).exists() for name in USERS)
    assert RunDir(run).newest_generation() is None and newest_checkpoint(run) == "step-00000022"


def test_when_all_are_damaged_every_rank_ends_with_4(run_ranks, folder):
    run_ranks(train, 1, folder, "base.yaml", "run", "train.stop_after=2 steps")
    for path in CheckpointStore(folder / "run" / "checkpoints").all():
        (path / "manifest.json").write_text("{}")
    assert run_ranks(train, 2, folder, "base.yaml", "run") == [4, 4]


def test_resume_none_will_not_write_over_a_run(run_ranks, folder):
    run_ranks(train, 1, folder, "base.yaml", "run", "train.stop_after=2 steps")
    assert run_ranks(train, 1, folder, "base.yaml", "run", "--resume", "none") == [2]


def test_a_new_run_can_begin_from_another_s_checkpoint(run_ranks, folder, whole):
    run_ranks(train, 1, folder, "base.yaml", "first", "train.stop_after=9 steps")
    checkpoint = folder / "first" / "checkpoints" / "step-00000009"
    run_ranks(train, 2, folder, "base.yaml", "second", "--resume", str(checkpoint))
    assert result(folder / "second")[0] == whole[0]
    assert [path.name for path in CheckpointStore(folder / "first" / "checkpoints").all()] == ["step-00000009"]


def _train_and_list_writes(ranks, folder):
    """What this rank opened for writing under the run directory, by its own account."""
    import sys

    written = []

    def audit(event, arguments):
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(os.fspath(arguments[0]))

    sys.addaudithook(audit)
    train(ranks, folder, "base.yaml", "run", "train.stop_after=3 steps")
    return [path for path in written if str(folder) in str(path)]


def test_only_rank_0_writes_into_the_run_directory(run_ranks, folder):
    written = run_ranks(_train_and_list_writes, 3, folder)
    assert written[0] and written[1] == written[2] == []


def test_state_json_tells_how_far_it_is(run_ranks, folder):
    run_ranks(train, 1, folder, "base.yaml", "run", "train.stop_after=12 steps")
    state = json.loads((folder / "run" / "state.json").read_text())
    assert (state["status"], state["step"], state["total_steps"], state["samples_seen"]) == ("stopped", 12, 22, 768)
    assert state["best"]["metric"] == "accuracy" and state["best"]["step"] == 11
    run_ranks(train, 1, folder, "base.yaml", "run")
    assert json.loads((folder / "run" / "state.json").read_text())["status"] == "done"


def test_a_training_that_is_made_longer_says_what_becomes_of_its_schedule(run_ranks, folder):
    run_ranks(train, 1, folder, "base.yaml", "run", "train.duration=4 steps")
    longer = ["train.duration=8 steps", "--allow-change", "train.duration"]
    assert run_ranks(train, 1, folder, "base.yaml", "run", *longer) == [0]
    log = (folder / "run" / "logs" / "rank0.log").read_text()
    told = "schedule: cosine over 8 steps, not 4: after step 4 the learning rate is 0.05, and would have been 0"
    assert log.count(told) == 1
    assert [row["lr"] for row in result(folder / "run")[1] if row["kind"] == "train"][4] == pytest.approx(0.05)
    flat = ["schedule={name: constant}", "--allow-change", "schedule"]
    run_ranks(train, 1, folder, "base.yaml", "flat", "train.duration=4 steps", flat[0])
    run_ranks(train, 1, folder, "base.yaml", "flat", *longer, *flat)
    assert "schedule:" not in (folder / "flat" / "logs" / "rank0.log").read_text()
