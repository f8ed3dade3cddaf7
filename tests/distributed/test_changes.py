"""What changed between two lives of a run: shown, and refused where the run would not end as it began."""

import os
import shutil
import sys

import pytest
from torch import nn

from dist_train.checkpoint.store import CheckpointStore, read_checked, verify
from dist_train.config.source import load
from dist_train.errors import ExitCode, UserError
from tests.distributed.test_switches import write_images
from tests.distributed.training import result, train, write_configs

FOLDER_DATA = "data={name: image_folder, root: ROOT, train: train, eval: eval, image_size: 8}"
SMALL = ["batch.global_size=8", "augment=[]", "train.duration=4 steps", "eval.every=2 steps"]
OWN = """
from torch import nn

def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def net(shape, classes):
    return nn.Sequential(
        nn.Conv2d(shape[0], 2, 3), nn.Flatten(), nn.Linear(2 * (shape[1] - 2) * (shape[2] - 2), classes)
    )


@pytest.fixture
def folder(tmp_path):
    write_configs(tmp_path)
    return tmp_path


def _attempt(ranks, folder, config, *arguments):
    """One life on this rank: what it refuses to begin with, or None. Own modules are found in `folder`."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        assert train(ranks, folder, config, "run", "--supervised", *arguments) == 0
    except UserError as error:
        return error.code, str(error)


def _log(folder):
    return (folder / "run" / "logs" / "rank0.log").read_text()


def _begin(run_ranks, folder, *overrides, config="base.yaml"):
    assert run_ranks(_attempt, 1, folder, config, *overrides, "train.stop_after=2 steps") == [None]


def _refused(run_ranks, folder, *overrides, config="base.yaml"):
    """The one reason that all of two ranks refuse for; nothing in the run directory has changed by it."""
    record = [path for path in (folder / "run").rglob("[a-z]*.*") if "logs" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in record}
    answers = run_ranks(_attempt, 2, folder, config, *overrides)
    assert answers[0] == answers[1] and answers[0][0] == ExitCode.CANNOT_RESUME
    assert before == {path: path.stat().st_mtime_ns for path in record}
    return answers[0][1]


def _rewrite(folder, **facts):
    """The checkpoint once more, with other facts in its manifest, as another version would have written it."""
    path = next((folder / "run" / "checkpoints").iterdir())
    manifest = verify(path)
    files = {name: read_checked(path, name, manifest) for name in manifest["files"]}
    kept = {key: value for key, value in manifest.items() if key not in ("files", "sha256", "format", "generation")}
    shutil.rmtree(path)
    CheckpointStore(path.parent).save(kept.pop("step"), files, {**kept, **facts})


# ---------------------------------------------------------------- data


def _an_image_more(images):
    shutil.copy(images / "train/dark/0.png", images / "train/dark/new.png")


def _an_image_less(images):
    (images / "eval/bright/3.png").unlink()


def _an_image_under_another_name(images):
    (images / "train/dark/0.png").rename(images / "train/dark/other.png")


def _an_image_of_another_size(images):
    shutil.copy(images / "train/bright/0.png", images / "train/dark/0.png")
    with (images / "train/dark/0.png").open("ab") as file:
        file.write(b"more")


def _another_class(images):
    (images / "train/dark").rename(images / "train/dim")
    (images / "eval/dark").rename(images / "eval/dim")


@pytest.mark.parametrize(
    "change",
    [_an_image_more, _an_image_less, _an_image_under_another_name, _an_image_of_another_size, _another_class],
)
def test_other_files_in_an_image_folder_are_refused_on_all_ranks(run_ranks, folder, change):
    write_images(folder / "images")
    overrides = [FOLDER_DATA.replace("ROOT", "images"), *SMALL]
    _begin(run_ranks, folder, *overrides)
    change(folder / "images")
    said = _refused(run_ranks, folder, *overrides)
    assert said.startswith("the data has changed since step-00000002 was written (data.")
    assert said.endswith("--allow-change data")
    assert run_ranks(_attempt, 2, folder, "base.yaml", *overrides, "--allow-change", "data") == [None, None]
    assert "the data has changed since step-00000002 was written" in _log(folder)


def test_a_folder_may_move(run_ranks, folder):
    write_images(folder / "images")
    _begin(run_ranks, folder, FOLDER_DATA.replace("ROOT", "images"), *SMALL)
    (folder / "images").rename(folder / "moved")
    absolute = FOLDER_DATA.replace("ROOT", str(folder / "moved"))
    assert "data.root: was images" in _refused(run_ranks, folder, absolute, *SMALL)
    assert run_ranks(_attempt, 1, folder, "base.yaml", absolute, *SMALL, "--allow-change", "data.root") == [None]


def test_data_in_memory_is_compared_too(run_ranks, folder):
    _begin(run_ranks, folder)
    data = verify(next((folder / "run" / "checkpoints").iterdir()))["data"]
    assert data["train"]["samples"] == 1438 and data["classes"] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    _rewrite(folder, data={**data, "train": {"samples": 1438, "content": "0" * 12}})
    assert f"data.train.content was {'0' * 12}, is {data['train']['content']}" in _refused(run_ranks, folder)


# ---------------------------------------------------------------- torch, machine, code


def test_another_torch_is_refused(run_ranks, folder):
    _begin(run_ranks, folder)
    _rewrite(folder, torch="2.11.0")
    said = _refused(run_ranks, folder)
    assert "torch was 2.11.0, is 2." in said and said.endswith("--allow-change torch")
    assert run_ranks(_attempt, 1, folder, "base.yaml", "--allow-change", "torch") == [None]


def test_another_machine_is_shown(run_ranks, folder, whole):
    _begin(run_ranks, folder)
    _rewrite(folder, machine={"device": "cpu Z80", "threads": 1, "decoder": "pillow"})
    assert run_ranks(_attempt, 1, folder, "base.yaml") == [None]
    assert "the machine has changed since step-00000002 was written (machine.de" in _log(folder)
    assert result(folder / "run") == whole


def test_a_user_s_changed_module_is_shown(run_ranks, folder):
    (folder / "nets.py").write_text(OWN)
    own = "model={name: nets:net}"
    _begin(run_ranks, folder, own)
    assert run_ranks(_attempt, 1, folder, "base.yaml", own, "train.stop_after=3 steps") == [None]
    assert "changed since" not in _log(folder)
    (folder / "nets.py").write_text(OWN + "\n# fixed\n")
    assert run_ranks(_attempt, 1, folder, "base.yaml", own) == [None]
    assert "the code has changed since step-00000003 was written (code.nets was " in _log(folder)


# ---------------------------------------------------------------- config


def test_threads_are_part_of_the_result(run_ranks, folder):
    _begin(run_ranks, folder)
    threads = "distributed.threads_per_rank"
    said = _refused(run_ranks, folder, f"{threads}=2")
    assert f"{threads}: was 1, is 2" in said and said.endswith(f"--allow-change {threads}")
    allowed = [f"{threads}=2", "--allow-change", threads, "train.stop_after=3 steps"]
    assert run_ranks(_attempt, 1, folder, "base.yaml", *allowed) == [None]


def test_editing_the_run_s_own_config_does_not_go_unnoticed(run_ranks, folder):
    _begin(run_ranks, folder)
    recorded = folder / "run" / "config.yaml"
    recorded.write_text(recorded.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    said = _refused(run_ranks, folder, config="run/config.yaml")
    assert "optimizer.momentum: was 0.9, is 0.8" in said


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_when_to_save_may_change_where_no_rollback_depends_on_it(run_ranks, folder, policy):
    overrides = [f"train.non_finite={policy}"]
    _begin(run_ranks, folder, *overrides)
    if policy == "rollback":
        said = _refused(run_ranks, folder, *overrides, "checkpoint.every=3 steps")
        assert said.endswith("--allow-change checkpoint.every")
    allowed = ["--allow-change", "checkpoint.every"] if policy == "rollback" else []
    changed = [*overrides, "checkpoint.every=3 steps", "checkpoint.keep=5", *allowed]
    assert run_ranks(_attempt, 1, folder, "base.yaml", *changed) == [None]


def test_a_config_that_this_version_cannot_read_says_so(run_ranks, folder):
    _begin(run_ranks, folder)
    config = verify(next((folder / "run" / "checkpoints").iterdir()))["config"]
    _rewrite(folder, config={**config, "seed": "today"})
    assert "another version of dist-train" in _refused(run_ranks, folder)


# ---------------------------------------------------------------- what a run has settled


@pytest.mark.parametrize(
    ("model", "began", "kept"),
    [
        ("{name: cnn, width: 4}", None, True),
        ("{name: cnn, width: 4}", False, False),  # as a run from before there was an `auto`
        ("{name: mlp, hidden: [4]}", None, False),
        (f"{{name: '{__name__}:net'}}", None, False),
    ],
)
def test_a_run_keeps_the_memory_layout_that_it_began_with(run_ranks, folder, model, began, kept):
    given = [f"model={model}", "train.duration=4 steps", "eval.every=4 steps"]
    _begin(run_ranks, folder, *given, *([] if began is None else [f"model.channels_last={str(began).lower()}"]))
    assert load(folder / "run" / "config.yaml", recorded=True).model.channels_last is kept
    assert run_ranks(_attempt, 2, folder, "base.yaml", *given) == [None, None]
    assert load(folder / "run" / "config.yaml", recorded=True).model.channels_last is kept
    other = f"model.channels_last={str(not kept).lower()}"
    assert "model.channels_last" in _refused(run_ranks, folder, *given, other)
