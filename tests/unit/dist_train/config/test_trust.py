"""What a config that came with a run would run: asked for, once, by what it is and not by where it lies."""

import json
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.config import recorded, trust
from dist_train.config.dump import to_yaml
from dist_train.config.schema import RunConfig
from dist_train.errors import UserError
from launch.children import isolated
from launch.commands.train import find_config
from launch.configs import load_trusted

OWN = {"data": {"name": "synthetic"}, "model": {"name": "birds:Net", "args": {"width": 3}}}


def config(**sections):
    return RunConfig.model_validate({**OWN, **sections})


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "dist-train" / "trusted.json"


@pytest.fixture
def run(tmp_path):
    """A run directory with a config, and without anything that could be built."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    (folder / "config.yaml").write_text(to_yaml(config()))
    return folder


def ask(run: Path, *overrides: str, given: bool = False, job: bool = False) -> list[str]:
    notes: list[str] = []
    found = recorded.read_recorded(run, overrides)
    assert found is not None
    found.trusted(given, notes.append, job=job)
    return notes


def test_a_config_that_names_code_is_refused_in_one_line_that_names_it(home, run):
    with pytest.raises(UserError, match=r"would import model birds:Net.*--trust") as refused:
        ask(run)
    assert refused.value.code == 2 and "\n" not in str(refused.value)
    assert not home.exists()


def test_what_was_let_through_once_is_not_asked_for_again(home, run):
    assert ask(run, given=True) == []
    assert ask(run) == []
    assert stat.S_IMODE(home.stat().st_mode) == 0o600
    assert [entry["what"] for entry in json.loads(home.read_text())["trusted"].values()] == ["model birds:Net"]


def test_what_the_user_trained_is_trusted_wherever_it_lies(home, run):
    trust.remember(trust.powers(config(name="another", seed=7, loader={"workers": 3})))
    assert ask(run) == []
    moved = run.rename(run.with_name("moved"))
    assert ask(moved) == []


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"name": "birds:Net", "args": {"width": 4}}},
        {"model": {"name": "birds:Other", "args": {"width": 3}}},
        {"model": {"name": "mlp"}, "task": {"name": "birds:Net", "args": {"width": 3}}},
    ],
)
def test_other_arguments_another_thing_or_another_place_are_asked_for(home, run, other):
    trust.remember(trust.powers(config(**other)))
    with pytest.raises(UserError, match="model birds:Net"):
        ask(run)


def test_what_is_built_for_an_argument_is_code_too(home, run):
    inner = [{"deep": {"name": "birds:Config", "args": {"of": {"name": "birds:Inner"}}}}]
    (run / "config.yaml").write_text(to_yaml(config(model={"name": "birds:Net", "args": {"config": inner}})))
    with pytest.raises(UserError, match="model birds:Net and model.args birds:Config and model.args.args birds:Inner,"):
        ask(run)
    assert ask(run, "model.name=mine:Net") == [], "the arguments go with the name"
    ask(run, given=True)
    assert ask(run) == []


def test_each_part_that_is_not_known_is_named_and_no_other(home, run):
    (run / "config.yaml").write_text(to_yaml(config(data={"name": "birds:Data"}, task={"name": "birds:Task"})))
    trust.remember(trust.powers(config()))
    with pytest.raises(UserError, match="import data birds:Data and task birds:Task, which"):
        ask(run)


def test_built_in_components_need_no_trust(home, run):
    (run / "config.yaml").write_text(to_yaml(config(model={"name": "mlp"})))
    assert ask(run) == []
    assert not home.exists()


def test_what_the_user_puts_in_its_place_is_the_users(home, run):
    assert ask(run, "model=fish:Net") == []
    assert ask(run, "model=mlp") == []
    with pytest.raises(UserError, match="birds:Net"):
        ask(run, "model.args.width=5")


@pytest.mark.parametrize(("key", "value"), [("site", "nccl.sh"), ("prefix", "apptainer exec x.sif"), ("python", "py")])
def test_what_a_job_would_execute_is_asked_for_where_there_is_a_job(home, run, key, value):
    (run / "config.yaml").write_text(to_yaml(config(model={"name": "mlp"}, slurm={key: value})))
    assert ask(run) == []
    with pytest.raises(UserError, match=f"would run slurm.{key} {value}"):
        ask(run, job=True)
    assert ask(run, job=True, given=True) == ask(run, job=True) == []


def test_so_is_each_option_of_sbatch_since_some_say_what_a_job_loads(home, run):
    theirs = ["--export=ALL,PYTHONPATH=/tmp/x", "--container-image=/tmp/x.sqsh"]
    (run / "config.yaml").write_text(to_yaml(config(model={"name": "mlp"}, slurm={"options": theirs})))
    assert ask(run) == []
    with pytest.raises(UserError, match="would run slurm.options --export=.* and slurm.options --container-image="):
        ask(run, job=True)
    assert ask(run, "slurm.options=[--nice=5]", job=True) == []
    trust.remember(trust.powers(config(slurm={"options": theirs[:1]}), job=True))
    with pytest.raises(UserError, match="would run slurm.options --container-image=/tmp/x.sqsh, which"):
        ask(run, job=True)


def test_a_recorded_config_extends_nothing(home, run):
    (run.parent / "other.yaml").write_text(to_yaml(config()))
    (run / "config.yaml").write_text("extends: ../other.yaml\n")
    with pytest.raises(UserError, match="extends no other file") as refused:
        ask(run)
    assert "\n" not in str(refused.value)


def test_a_file_of_the_users_own_is_trusted_beside_folders_of_other_names(home, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(to_yaml(config()))
    assert not recorded.is_recorded(tmp_path / "config.yaml")
    loaded = recorded.load_given(tmp_path / "config.yaml", (), trusts=False, note=pytest.fail)
    assert loaded == config()
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    with pytest.raises(UserError, match="--trust"):
        recorded.load_given(tmp_path / "config.yaml", (), trusts=False, note=pytest.fail)


def _named(words: tuple[str, ...] = (), resume: Path | None = None, run_dir: Path | None = None) -> RunConfig:
    """The config that `train` and `slurm` come to."""
    return load_trusted(*find_config(words, resume and str(resume), run_dir and str(run_dir)))


def test_a_config_found_in_what_was_named_as_a_run_is_no_config_of_the_users_whatever_else_is_there(home, tmp_path):
    place = tmp_path / "sent"
    place.mkdir()
    (place / "config.yaml").write_text(to_yaml(config()))
    for given in ({"resume": place}, {"run_dir": place}, {"words": (f"{place}/config.yaml",), "resume": place}):
        with pytest.raises(UserError, match="would import model birds:Net"):
            _named(**given)
    (tmp_path / "base.yaml").write_text(to_yaml(config(model={"name": "mlp"})))
    (place / "config.yaml").write_text("extends: ../base.yaml\n")
    with pytest.raises(UserError, match="extends no other file"):
        _named(resume=place)
    assert not home.exists()
    assert _named((f"{place}/config.yaml",)).model.name == "mlp"  # a file that the user gives


@pytest.mark.parametrize("name", ["", "run/checkpoints/best", "run/checkpoints/step-00000001"])
def test_so_is_one_that_lies_in_a_checkpoint(home, tmp_path, name):
    place = tmp_path / "sent" / name
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    (place / "config.yaml").write_text(to_yaml(config()))
    for given in ({"resume": place}, {"run_dir": place}, {"words": (f"{place}/config.yaml",)}):
        with pytest.raises(UserError, match="would import model birds:Net"):
            _named(**given)


TRACES = ("manifest.json", "environment.json", ".lease", "checkpoints/best", "logs/rank0.log", ".lock-node0")


@pytest.mark.parametrize("name", TRACES)
def test_a_config_is_a_runs_where_anything_lies_that_a_run_leaves(home, tmp_path, name):
    (tmp_path / "config.yaml").write_text(to_yaml(config()))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(UserError, match="would import model birds:Net"):
        _named((f"{tmp_path}/config.yaml",))


# ---------------------------------------------------------------- standing in what was sent

SHADOWED = ("torch", "numpy", "wandb", "multiprocessing", "runpy", "json", "launch", "dist_train", "yaml", "pydantic")
SENT = {
    "data": {"name": "synthetic", "shape": [3, 2, 2], "classes": 2, "size": 8, "eval_size": 4},
    "model": {"name": "mlp", "hidden": [2]},
    "batch": {"global_size": 4, "microbatches": 1},
    "train": {"duration": "2 steps"},
    "tracking": {"wandb": {"mode": "offline"}},
    "loader": {"workers": 1},
}


@pytest.fixture
def sent(home, tmp_path, monkeypatch):
    """The folder that the command is given in: a run, and modules that leave a trace when they are imported."""
    place = tmp_path / "sent"
    place.mkdir()
    for name in SHADOWED:
        (place / f"{name}.py").write_text(f"open({str(tmp_path / f'ran-{name}')!r}, 'w')\n")
    (place / "config.yaml").write_text(to_yaml(RunConfig.model_validate(SENT)))
    monkeypatch.chdir(place)
    return place


_SLOW = [("train", "config.yaml", "--resume", ".", "--start", "exec"), ("doctor", "config.yaml")]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--resume", "."),
        ("train", "--resume", ".", "--dry-run"),
        *(pytest.param(words, marks=pytest.mark.long) for words in _SLOW),
    ],
)
def test_no_module_is_taken_from_the_run_that_the_user_stands_in(sent, words):
    command = [str(Path(sys.executable).parent / "dist-train"), *words, "--nproc-per-node", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not list(sent.parent.glob("ran-*"))
    assert done.returncode == 0 or words[0] == "doctor", done.stderr  # which may find something of this machine


def test_nor_by_what_a_rank_starts(sent, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "rank.py").write_text(
        "import multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('forkserver').Process(target=print, args=('started',))\n"
        "    process.start()\n    process.join()\n    sys.exit(process.exitcode)\n"
    )
    command = [sys.executable, isolated("rank")[0], "rank"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "code")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert not list(sent.parent.glob("ran-*"))
    assert done.stdout == "started\n", done.stderr


# ---------------------------------------------------------------- the list


@pytest.mark.parametrize(
    "content", [b"", b"[", b"[" * 100_000, b"[]", b'{"version": 1}', b'{"version": 2, "trusted": {}}', b"\xff"]
)
def test_a_damaged_list_counts_as_empty_is_told_in_one_line_and_mended(home, run, content):
    home.parent.mkdir(parents=True)
    home.write_bytes(content)
    notes: list[str] = []
    with pytest.raises(UserError, match="--trust"):
        trust.require(trust.powers(config()), "it", given=False, note=notes.append)
    assert len(notes) == 1 and str(home) in notes[0] and "\n" not in notes[0]
    ask(run, given=True)
    assert ask(run) == []


def test_a_pipe_in_its_place_is_not_waited_for(home, run):
    home.parent.mkdir(parents=True)
    os.mkfifo(home)
    with pytest.raises(UserError, match="--trust"):
        ask(run)
    assert len(ask(run, given=True)) == 1
    assert ask(run) == []


@pytest.mark.parametrize("given", ["/proc/nowhere", "/dev/null"])
def test_a_home_that_cannot_be_written_is_a_note_and_no_end(monkeypatch, run, given):
    monkeypatch.setenv("XDG_CONFIG_HOME", given)
    (note,) = ask(run, given=True)
    assert "for this time alone" in note
    assert trust.remember(trust.powers(config())) is not None


@pytest.mark.parametrize("given", [None, "", "relative"])
def test_without_a_home_nothing_is_remembered_and_nothing_written(monkeypatch, run, given):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # whom the list of users does not know
    monkeypatch.chdir(run)
    monkeypatch.delenv("HOME") if given is None else monkeypatch.setenv("HOME", given)
    before = sorted(run.iterdir())
    assert len(ask(run, given=True)) == 1
    assert sorted(run.iterdir()) == before


def test_the_list_stays_small_and_keeps_the_newest(home, monkeypatch):
    monkeypatch.setattr(trust, "MAX_ENTRIES", 5)
    for number in range(12):
        trust.remember([trust.Power(where="model", what=f"birds:Net{number}")])
    kept = [entry["what"] for entry in json.loads(home.read_text())["trusted"].values()]
    assert len(kept) == 5 and kept[-1] == "model birds:Net11"


def _remember(number: int) -> None:
    for part in range(5):
        trust.remember([trust.Power(where="model", what=f"birds:Net{number}_{part}")])


def test_many_writers_at_once_lose_nothing(home):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_remember, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert len(json.loads(home.read_text())["trusted"]) == 40
    assert sorted(path.name for path in home.parent.iterdir()) == [".lock", "trusted.json"]
