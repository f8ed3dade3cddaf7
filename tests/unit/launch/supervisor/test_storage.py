"""A run directory that has gone or refuses, between two generations."""

import threading
from pathlib import Path

import pytest

from dist_train.errors import ExitCode, UserError
from dist_train.rundir.layout import RunDir
from launch.signals import ReceivedSignals
from launch.supervisor import storage
from launch.supervisor.storage import refuse_a_lost_directory, when_writable
from tests.unit.launch.supervisor.test_launch_log import plan

SAVED = "step-00000010"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run/generations").mkdir(parents=True)
    (tmp_path / "run/checkpoints" / SAVED).mkdir(parents=True)
    return tmp_path / "run"


def test_a_directory_that_comes_back_is_waited_for(run):
    run.rename(run.parent / "away")
    back = threading.Timer(0.3, (run.parent / "away").rename, [run])
    with ReceivedSignals() as signals:
        back.start()
        found = when_writable(plan(run, 0), signals, SAVED)
    back.join()
    assert found is not None and found.path == RunDir(run).generation(1).path


@pytest.mark.parametrize("gone", [".", "checkpoints"])
def test_what_was_saved_and_is_gone_is_exit_code_4_and_nothing_is_made(run, monkeypatch, gone):
    monkeypatch.setattr(storage, "PATIENCE_S", 0.2)
    (run / gone).rename(run.parent / "away")
    before = sorted(run.parent.rglob("*"))
    with ReceivedSignals() as signals, pytest.raises(UserError) as raised:
        when_writable(plan(run, 0), signals, SAVED)
    assert raised.value.code == ExitCode.CANNOT_RESUME and SAVED in str(raised.value)
    assert sorted(run.parent.rglob("*")) == before


def test_a_job_that_is_started_again_without_its_directory_ends_with_4(run):
    refuse_a_lost_directory(plan(run, 1))
    refuse_a_lost_directory(plan(run / "new", 0))
    with pytest.raises(UserError) as raised:
        refuse_a_lost_directory(plan(run / "gone", 1))
    assert raised.value.code == ExitCode.CANNOT_RESUME
