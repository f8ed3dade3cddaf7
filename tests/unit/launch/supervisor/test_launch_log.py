"""The record of a run's lives, and when starting again has to end."""

import json
import os
import signal
from pathlib import Path

import pytest

from dist_train.config.schema import RunConfig
from dist_train.config.source import load
from dist_train.errors import ExitCode
from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.records import read_launches
from launch.job import Place
from launch.plan import LaunchPlan, make_plan
from launch.plan.flags import Flags
from launch.plan.host import Host
from launch.signals import OTHERS, STOPS, ReceivedSignals
from launch.supervisor.ending import agreed_code
from launch.supervisor.launch_log import Launch
from launch.supervisor.run_files import RunFiles

ROOT = Path(__file__).resolve().parents[4]


def plan(folder: Path, restarts: int, node: int = 0, nodes: int = 1) -> LaunchPlan:
    config: RunConfig = load(str(ROOT / "configs/digits.yaml"), [])
    hosts = tuple(f"n{number}" for number in range(nodes))
    facts = {"job": "7", "job_number": 7, "nodes": nodes, "node": node, "head": "n0", "restarts": restarts, "cpus": 1}
    host = Host(name="n", cores=1, gpus=0, place=Place(scheduler="slurm", **facts, hosts=hosts))
    words = {"program": ("-m", "dist_train"), "arguments": (), "resume": "auto"}
    return make_plan(config, Flags(), host, folder=folder, **words)  # type: ignore[arg-type]


def checkpoint(folder: Path, step: int) -> None:
    (folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)


def killed_life(folder: Path, restarts: int) -> None:
    Launch(plan(folder, restarts), RunFiles()).begin()


def test_a_life_that_was_killed_is_closed_by_the_next(tmp_path):
    killed_life(tmp_path, 0)
    assert read_launches(tmp_path)[0].ended is None
    killed_life(tmp_path, 1)
    first, second = read_launches(tmp_path)
    assert (first.number, first.began.restarts, first.began.hosts, first.in_order) == (1, 0, ["n0"], False)
    assert "left no word" in first.ended.reason
    assert (second.number, second.began.restarts, second.ended) == (2, 1, None)


def test_three_in_a_row_that_saved_nothing_new_are_enough(tmp_path):
    for restarts in range(3):
        assert not Launch(plan(tmp_path, restarts), RunFiles()).made_no_progress()
        killed_life(tmp_path, restarts)
    last = Launch(plan(tmp_path, 3), RunFiles())
    assert last.made_no_progress()
    assert last.give_up() == ExitCode.USER_CODE
    assert not Launch(plan(tmp_path, 4), RunFiles()).made_no_progress()  # a person has put it back


def test_a_newer_checkpoint_or_another_job_begins_to_count_anew(tmp_path):
    for restarts in range(3):
        killed_life(tmp_path, restarts)
    assert not Launch(plan(tmp_path, 0), RunFiles()).made_no_progress()
    checkpoint(tmp_path, 10)
    assert not Launch(plan(tmp_path, 3), RunFiles()).made_no_progress()


@pytest.fixture
def asked_for():
    """Whoever opens an signals in this process gives its signals back."""
    before = {number: signal.getsignal(number) for number in (*STOPS, *OTHERS, signal.SIGHUP, signal.SIGCHLD)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_comes_again_when_all_is_done_does_not_kill_the_launcher(asked_for, number):
    with ReceivedSignals() as signals:
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # would end this process
    assert [signals.stop, *signals.take_others()].count(number) == 1


@pytest.mark.parametrize(
    ("status", "code", "reason", "in_order"),
    [
        ("stopped", 75, "SIGUSR1: saved and stopped", True),
        ("running", 75, "SIGUSR1: not saved in time", False),
        (None, 75, "SIGUSR1, before training began", True),
        ("failed", 10, "SIGUSR1, and then user code", False),
    ],
)
def test_what_ended_a_life_is_said(tmp_path, asked_for, status, code, reason, in_order):
    with ReceivedSignals() as signals:
        launch = Launch(plan(tmp_path, 0), RunFiles())
        launch.begin()
        os.kill(os.getpid(), signal.SIGUSR1)
        if status:
            (tmp_path / "state.json").write_text(json.dumps({"status": status, "updated": 1.0}))  # clocks may jump
        launch.end(code, signals)
    ended = read_launches(tmp_path)[0].ended
    assert (ended.reason, ended.in_order, ended.exit_code) == (reason, in_order, code)
    assert 0 <= ended.seconds_to_stop < 60


PEER = {"exit_code": 10, "cause": {"kind": "peer"}}


@pytest.mark.parametrize(
    ("others", "last", "code"),
    [
        ([{"exit_code": 12, "cause": {"kind": "signal"}}, PEER], False, 12),  # the other node knows why
        ([PEER, PEER], True, 75),  # the network between them
        ([PEER, PEER], False, 10),  # which we start again on ourselves
        ([PEER, None], False, 75),  # node 2 is gone
    ],
)
def test_a_node_that_only_lost_a_peer_asks_the_others(tmp_path, monkeypatch, others, last, code):
    monkeypatch.setattr("launch.supervisor.ending.VERDICT_WAIT_S", 0.3)
    for node, verdict in enumerate(others, 1):
        if verdict is not None:
            (tmp_path / f"verdict-node{node}.json").write_text(json.dumps(verdict))
    assert agreed_code(plan(tmp_path, 0, nodes=3), GenerationDir(tmp_path), 10, last=last) == code
