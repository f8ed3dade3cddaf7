"""`dist-train new`: a project that trains at once, from an installed package."""

import compileall
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dist_train.config.source import load
from launch.commands.new import FILES, TASKS

ROOT = Path(__file__).parents[2]


def run(folder, *words, code=0, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "NO_COLOR": "1"}
    environment |= more.pop("environment", {})
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, **more
    )
    assert done.returncode == code, done.stdout + done.stderr[-3000:]
    return done.stdout + done.stderr


def new(folder, *words, **more):
    return run(folder, "-m", "dist_train.launch", "new", *words, **more)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the files of a wheel, compiled as installers do it, and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    compileall.compile_dir(folder, quiet=2)
    return folder


@pytest.mark.parametrize("task", [TASKS[0], *(pytest.param(task, marks=pytest.mark.long) for task in TASKS[1:])])
def test_an_installed_package_writes_a_project_whose_test_passes(installed, tmp_path, task):
    environment = {"PYTHONPATH": str(installed)}
    where = run(tmp_path, "-c", "import dist_train; print(dist_train.__file__)", environment=environment)
    assert where.startswith(str(installed))
    said = new(tmp_path, "my project/birds", "--task", task, environment=environment)
    assert "cd 'my project/birds' && dist-train train config.yaml" in said
    project = tmp_path / "my project/birds"
    assert sorted(path.name for path in project.iterdir()) == sorted([*FILES, "schema.json"])
    run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", environment=environment)


@pytest.mark.parametrize("task", TASKS)
def test_each_project_is_well_written(tmp_path, monkeypatch, task):
    """In a folder whose name is no name of a run."""
    new(tmp_path, "#1 é", "--task", task)
    folder = tmp_path / "#1 é"
    texts = {name: (folder / name).read_text() for name in FILES}
    assert not [name for name, text in texts.items() if "#:" in text or " \n" in text]
    assert texts["config.yaml"].startswith("# yaml-language-server: $schema=schema.json\n")
    style = ["--config", str(ROOT / "pyproject.toml")]
    run(folder, "-m", "ruff", "check", *style, ".")
    run(folder, "-m", "ruff", "format", "--check", *style, ".")
    monkeypatch.chdir(folder)
    config = load("config.yaml", [])
    assert (config.name, config.task.name) == ("1", task)


def test_what_is_there_stays_as_it_is_and_nothing_is_left_half_written(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for words, said in (
        (["full"], "✗ full is not empty, it has mine.txt: give a folder that is new or empty"),
        (["file"], "✗ file cannot be written: Not a directory"),
        (["file/below"], "✗ file/below cannot be written: Not a directory"),
        (["new", "--task", "clasification"], "'clasification' is not one of 'classification', 'multi_label'"),
        ([], "missing argument 'FOLDER'"),
    ):
        told = new(tmp_path, *words, code=2)
        assert said in told and told.count("\n") == 1
    told = new(tmp_path, "a/b", code=2, preexec_fn=no_large_file)
    assert "✗ a/b cannot be written: File too large" in told
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert "to train it: dist-train train config.yaml" in new(tmp_path / "empty", ".")


def no_large_file():
    """The first files can be written, the next one cannot: as on a disk that becomes full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1600, 1600))
