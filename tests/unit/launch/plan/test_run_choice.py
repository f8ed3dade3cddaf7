"""Which run directory a command line means, and what `runs` says of those there are."""

import itertools
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.runs import newest_checkpoint, point_latest_at
from launch.job import Place
from launch.plan import run_choice
from launch.plan.run_choice import RunRequest
from launch.runs.listing import list_runs


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    sections = {"data": {"name": "digits"}, "model": {"name": "mlp"}}
    return RunConfig.model_validate({"name": "digits", "run_root": str(tmp_path / "runs"), **sections})


SECONDS = itertools.count(1_790_000_000)
"""When a checkpoint was saved: each later than the one before."""


def make_run(folder: Path, *steps: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").touch()
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_text("weights")
        facts = {"files": {"model.safetensors": {"size": 7}}, "saved": next(SECONDS)}
        (checkpoint / "manifest.json").write_text(json.dumps(facts))
    return folder


def in_job(job: str, restarts: int = 0) -> dict[str, Any]:
    """What a request says in a scheduler's job."""
    where = {"job_number": 1, "nodes": 1, "node": 0, "head": "here", "cpus": None}
    place = Place(scheduler="slurm", job=job, restarts=restarts, **where)
    return {"job": place.run_name, "place": place}


def choose(config: RunConfig, **asked: Any) -> run_choice.Choice:
    made = RunRequest(**{"run_dir": None, "resume": None, "job": None, "nodes": 1, **asked})
    return run_choice.choose_run(config, made)


def test_nothing_said_is_a_new_directory(config, tmp_path):
    first, second = choose(config), choose(config)
    assert first.folder.parent == tmp_path / "runs" / "digits" and first.resume == "none"
    assert first.folder != second.folder
    assert not (tmp_path / "runs").exists()  # choosing makes nothing


def test_a_named_directory_goes_on_if_it_holds_checkpoints(config, tmp_path):
    assert choose(config, run_dir=str(tmp_path / "mine")).resume == "none"
    make_run(tmp_path / "mine", 10)
    assert choose(config, run_dir=str(tmp_path / "mine")).resume == "auto"
    with pytest.raises(UserError, match="holds checkpoints"):
        choose(config, run_dir=str(tmp_path / "mine"), resume="none")


def test_auto_goes_on_with_the_latest(config, tmp_path):
    assert choose(config, resume="auto").resume == "none"
    runs = tmp_path / "runs" / "digits"
    one, two = make_run(runs / "one", 10), make_run(runs / "two", 5)
    assert going_on(config) == (two, "step-00000005")  # the one that saved last, where there is no link
    point_latest_at(one)
    assert going_on(config) == (one, "step-00000010")
    chosen = choose(config, resume="auto")
    assert chosen.resume == "auto" and chosen.note is not None
    assert str(one) in chosen.note and "step-00000010" in chosen.note


def going_on(config) -> tuple[Path, str]:
    chosen = choose(config, resume="auto")
    assert chosen.resume == "auto" and chosen.note is not None
    return chosen.folder.resolve(), chosen.note.split()[-1]


def truncated(run: Path) -> None:
    (run / "checkpoints" / "step-00000005" / "model.safetensors").write_text("")


def unreadable(run: Path) -> None:
    (run / "checkpoints" / "step-00000005" / "manifest.json").write_text('{"files":')


def removed(run: Path) -> None:
    shutil.rmtree(run)  # and `latest` points to nothing


def unsaved(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


@pytest.mark.parametrize("fate", [truncated, unreadable, removed, unsaved])
@pytest.mark.parametrize("linked", [True, False])
def test_auto_never_begins_anew_where_something_could_be_gone_on_from(config, tmp_path, fate, linked):
    runs = tmp_path / "runs" / "digits"
    older, newer = make_run(runs / "older", 10), make_run(runs / "newer", 5)
    make_run(runs / "sweep-1" / "001", 90)  # a point of a sweep is no run of this name
    if linked:
        point_latest_at(newer)
    fate(newer)
    assert going_on(config) == (older, "step-00000010")


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(config, tmp_path):
    run = make_run(tmp_path / "runs" / "digits" / "one", 5, 10, 100_000_000)
    assert going_on(config) == (run, "step-100000000")
    shutil.rmtree(run / "checkpoints" / "step-100000000")
    (run / "checkpoints" / "step-00000010" / "model.safetensors").unlink()
    assert going_on(config) == (run, "step-00000005")


def test_a_copy_that_is_called_latest_does_not_stand_for_the_run_itself(config, tmp_path):
    runs = tmp_path / "runs" / "digits"
    run = make_run(runs / "one", 10)
    shutil.copytree(run, runs / "latest")
    assert going_on(config)[0] == run
    point_latest_at(run)  # cannot, and leaves nothing behind
    assert sorted(path.name for path in runs.iterdir()) == ["latest", "one"]
    shutil.rmtree(run)
    assert going_on(config)[0] == runs / "latest"


def test_auto_in_a_job_goes_on_with_the_job_s_own_run_else_with_the_newest(config, tmp_path):
    runs = tmp_path / "runs" / "digits"
    first = make_run(runs / "slurm-7", 10)
    chosen = choose(config, **in_job("8"), resume="auto")
    assert (chosen.folder, chosen.resume) == (first, "auto")
    (first / "lives.jsonl").write_text('{"life": 2, "event": "began", "job": "8"}\n{"li')
    make_run(runs / "other", 20)  # by now the newest; job 8 comes back from the queue
    assert choose(config, **in_job("8"), resume="auto").folder == first
    assert choose(config, **in_job("9"), resume="auto").folder == runs / "other"
    make_run(runs / "slurm-9", 1)
    assert choose(config, **in_job("9"), resume="auto").folder == runs / "slurm-9"


def test_a_run_goes_on_in_place_and_a_checkpoint_begins_a_new_one(config, tmp_path):
    run = make_run(tmp_path / "runs" / "digits" / "one", 10)
    assert choose(config, resume=str(run)) == run_choice.Choice(folder=run, resume="auto")
    checkpoint = run / "checkpoints" / "step-00000010"
    chosen = choose(config, resume=str(checkpoint))
    assert chosen.folder != run and chosen.resume == str(checkpoint)
    assert run_choice.config_of(str(run), None) == run / "config.yaml"
    assert run_choice.config_of(str(checkpoint), None) == run / "config.yaml"


def test_a_requeued_job_goes_on_from_its_own_checkpoints(config, tmp_path):
    source = make_run(tmp_path / "runs" / "digits" / "one", 10) / "checkpoints" / "step-00000010"
    first = choose(config, job="slurm-7", resume=str(source))
    assert first.folder.name == "slurm-7" and first.resume == str(source)
    make_run(first.folder, 20)
    again = choose(config, job="slurm-7", resume=str(source))
    assert again.resume == "auto" and again.note is not None and "its newest" in again.note


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"nodes": 2}, "agree on one run directory"),
        ({"resume": "nowhere"}, "no such directory"),
        ({"job": "../../x"}, "letters, digits"),
        ({"job": "-rf"}, "letters, digits"),
    ],
)
def test_requests_that_cannot_be_met(config, asked, words):
    with pytest.raises(UserError, match=words):
        choose(config, **asked)


def test_a_folder_that_is_no_run_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="neither a run directory"):
        choose(config, resume=str(tmp_path))
    make_run(tmp_path / "a"), make_run(tmp_path / "b")
    with pytest.raises(UserError, match="two runs"):
        choose(config, run_dir=str(tmp_path / "a"), resume=str(tmp_path / "b"))


ME = asdict(ProcessId.myself())
OLD = {name: value for name, value in ME.items() if name != "boot"}  # as versions before this one have written it
OWNERS = {"a": ME, "a2": OLD, "b": {**ME, "started": 1}, "b2": {**OLD, "started": 1}, "c": {**OLD, "host": "elsewhere"}}
OWNERS["b3"], OWNERS["b4"] = {**ME, "pid": 2**70}, {**ME, "pid": -1}  # a stranger's
OWNERS["c2"] = {**ME, "boot": "of another namespace"}
OWNERS["a3"], OWNERS["b5"] = {**ME, "host": "renamed since"}, {**ME, "host": "renamed since", "started": 1}


def test_runs_are_listed_with_their_state(tmp_path):
    for name, owner in OWNERS.items():
        folder = make_run(tmp_path / "digits" / name)
        (folder / "state.json").write_text(json.dumps({"status": "running", "step": 3, "total_steps": 10}))
        (folder / "generations" / "1" / "nodes").mkdir(parents=True)
        (folder / "generations" / "1" / "nodes" / "node0.json").write_text(json.dumps(owner))
    make_run(tmp_path / "digits" / "e")  # started by plain torchrun
    shutil.copytree(tmp_path / "digits" / "b", tmp_path / "digits" / "f")
    (tmp_path / "digits" / "f" / "generations" / "1" / "verdict.json").write_text("{}")
    done = make_run(tmp_path / "digits" / "d")
    (done / "state.json").write_text(json.dumps({"status": "done"}))
    os.symlink("d", tmp_path / "digits" / "latest")
    found = list_runs(tmp_path)
    assert [(run.name, run.state) for run in found] == [
        ("digits/a", "running"),
        ("digits/a2", "running"),
        ("digits/a3", "running"),
        ("digits/b", "died"),
        ("digits/b2", "died"),
        ("digits/b3", "died"),
        ("digits/b4", "died"),
        ("digits/b5", "died"),
        ("digits/c", "running"),  # another host's processes cannot be seen from here
        ("digits/c2", "running"),  # nor those of another container
        ("digits/d", "done"),
        ("digits/e", "starting"),
        ("digits/f", "failed"),
    ]


def test_a_copy_that_somebody_made_of_a_checkpoint_is_not_the_newest(tmp_path):
    run = make_run(tmp_path, 100, 200)
    for name in ("step-00000100-copy", "step-00000300.bak"):
        (run / "checkpoints" / name).mkdir()
    assert newest_checkpoint(run) == "step-00000200"
