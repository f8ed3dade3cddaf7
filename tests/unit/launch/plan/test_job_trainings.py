"""A job may train several configs, one after the other: each has its folder, and finds it when the job comes back."""

import json
from pathlib import Path

import pytest

from dist_train.config.dump import to_yaml
from dist_train.config.schema import RunConfig
from launch.plan.run_choice import Choice, RunRequest, choose_run
from tests.unit.launch.plan.test_run_choice import in_job, make_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "digits"


def config(runs: Path, **more) -> RunConfig:
    sections = {"data": {"name": "digits"}, "model": {"name": "mlp"}, **more}
    return RunConfig.model_validate({"name": "digits", "run_root": str(runs.parent), **sections})


def chosen(runs: Path, restarts: int = 0, resume: str | None = None, allowed: tuple[str, ...] = (), **more) -> Choice:
    request = RunRequest(run_dir=None, resume=resume, nodes=1, allowed=allowed, **in_job("7", restarts))
    return choose_run(config(runs, **more), request)


def live(choice: Choice, runs: Path, restarts: int, status: str, **more) -> Path:
    """What a training leaves there: its config with all settled, a checkpoint, its life and how it stands."""
    run = make_run(choice.folder, 4 + restarts)
    settled = config(runs, **{**more, "batch": {"microbatches": 4}})
    (run / "config.yaml").write_text(to_yaml(settled))
    (run / "state.json").write_text(
        json.dumps({"status": status, "signal": "SIGUSR1" if status == "stopped" else None})
    )
    rows = [{"life": restarts + 1, "event": "began", "job": "7", "restarts": restarts}]
    rows += [{"life": restarts + 1, "event": "ended", "in_order": True}] * (status != "running")
    with open(run / "lives.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return run


def test_three_configs_have_three_folders_and_find_them_again(runs):
    folders = [live(chosen(runs, seed=seed), runs, 0, "done", seed=seed).name for seed in (1, 2, 3)]
    assert folders == ["slurm-7", "slurm-7-2", "slurm-7-3"]
    for seed, name in zip((3, 1, 2), ("slurm-7-3", "slurm-7", "slurm-7-2"), strict=True):
        again = chosen(runs, restarts=1, seed=seed, tracking={"every": "5 steps"})  # which is safe to change
        assert (again.folder.name, again.resume) == (name, "auto")


def test_a_job_that_comes_back_goes_on_with_each_and_then_begins_the_rest(runs):
    live(chosen(runs, seed=1), runs, 0, "done", seed=1)
    live(chosen(runs, seed=2), runs, 0, "stopped", seed=2)  # put back into the queue here
    live(chosen(runs, restarts=1, seed=1), runs, 1, "done", seed=1)
    second = chosen(runs, restarts=1, seed=2)
    assert (second.folder.name, second.resume) == ("slurm-7-2", "auto")
    live(second, runs, 1, "done", seed=2)
    third = chosen(runs, restarts=1, seed=3)
    assert (third.folder.name, third.resume) == ("slurm-7-3", "none")
    assert third.note is not None and "slurm-7-3" in third.note


def test_a_script_that_skips_what_is_done_comes_to_the_right_one(runs):
    live(chosen(runs, seed=1), runs, 0, "done", seed=1)
    assert chosen(runs, restarts=1, seed=2).folder.name == "slurm-7-2"


@pytest.mark.parametrize("status", ["stopped", "running", "failed"])
def test_a_config_that_was_edited_in_the_queue_is_no_new_training(runs, status):
    """It is taken to the run that it was, where rank 0 refuses the change: nothing begins anew unseen."""
    live(chosen(runs, seed=1), runs, 0, status, seed=1)
    edited = chosen(runs, restarts=1, seed=1, optimizer={"name": "sgd", "lr": 0.3})
    assert (edited.folder.name, edited.resume) == ("slurm-7", "auto")
    allowed = chosen(runs, restarts=1, seed=1, optimizer={"name": "sgd", "lr": 0.3}, allowed=("optimizer.lr",))
    assert allowed.folder.name == "slurm-7"


def test_what_has_not_begun_is_anybody_s(runs):
    (runs / "slurm-7").mkdir(parents=True)
    assert chosen(runs, seed=5).folder.name == "slurm-7"


def test_auto_in_a_job_of_several_begins_each_where_nothing_of_it_is_there(runs):
    live(chosen(runs, seed=1, resume="auto"), runs, 0, "done", seed=1)
    second = chosen(runs, seed=2, resume="auto")
    assert (second.folder.name, second.resume) == ("slurm-7-2", "none")


def test_what_is_around_a_run_may_change_and_its_config_stays_its_own(runs):
    allowed = ("data", "torch")
    digits, synthetic = {"name": "digits"}, {"name": "synthetic"}
    live(chosen(runs, data=digits, allowed=allowed), runs, 0, "done", data=digits)
    assert chosen(runs, data=synthetic, allowed=allowed).folder.name == "slurm-7-2"


def fail_early(choice: Choice, restarts: int) -> None:
    """What a training leaves that fails before it has written its config."""
    choice.folder.mkdir(parents=True, exist_ok=True)
    with open(choice.folder / "lives.jsonl", "a") as file:
        for event in ({"event": "began", "job": "7", "restarts": restarts}, {"event": "ended", "in_order": False}):
            file.write(json.dumps({"life": restarts + 1, **event}) + "\n")


def test_one_that_failed_before_its_config_keeps_its_folder(runs):
    fail_early(chosen(runs, seed=1), 0)
    live(chosen(runs, seed=2), runs, 0, "stopped", seed=2)
    assert not (runs / "slurm-7" / "config.yaml").exists() and (runs / "slurm-7-2").is_dir()
    assert chosen(runs, restarts=1, seed=2).folder.name == "slurm-7-2"  # also where the script skips the first
    again = chosen(runs, restarts=1, seed=1)
    assert again.folder.name == "slurm-7"
    fail_early(again, 1)
    live(chosen(runs, restarts=1, seed=2), runs, 1, "done", seed=2)
    assert chosen(runs, restarts=1, seed=3).folder.name == "slurm-7-3"


def test_auto_goes_on_with_the_run_of_an_earlier_job_and_the_next_config_does_not(runs):
    earlier = make_run(runs / "slurm-6", 2)
    (earlier / "config.yaml").write_text(to_yaml(config(runs, seed=1, batch={"microbatches": 4})))
    assert live(chosen(runs, seed=1, resume="auto"), runs, 0, "done", seed=1) == earlier
    second = chosen(runs, seed=2, resume="auto")
    assert (second.folder.name, second.resume) == ("slurm-7", "none")
    live(second, runs, 0, "stopped", seed=2)
    for seed, name in ((1, "slurm-6"), (2, "slurm-7")):
        again = chosen(runs, restarts=1, seed=seed, resume="auto")
        assert (again.folder.name, again.resume) == (name, "auto")
