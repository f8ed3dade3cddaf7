"""The campaigns of docs/faults.md: small counts always, large ones with `make test-long`."""

import random
import shutil

import pytest

from tests.faults import (
    corruption,
    data,
    disk,
    filesystems,
    kill_plan,
    kills,
    nodes,
    power_loss,
    signals,
    syscalls,
)
from tests.faults.__main__ import CAMPAIGNS, main
from tests.faults.fixture import record
from tests.faults.mounts import why_not
from tests.faults.tally import Order, Tally, table

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: apt-get install strace")


def assert_nothing_lost(tally: Tally) -> None:
    print(table([tally]))
    assert tally.injections > 0
    assert tally.failures == [], table([tally])


@pytest.mark.timeout(600)
def test_killed_over_and_over_a_run_ends_as_if_nothing_had_happened(memory_path):
    """By the real launcher. A killed launcher leaves nothing and is started again by hand; after a killed rank, agent
    or server it starts again by itself."""
    expected, damage = kills.prepare(memory_path)
    kills.make_checkpoints(memory_path / "run")
    moments = (("launcher", 0), ("rank", 1), ("server", 0), ("writer", 1), ("launcher", 1), ("agent", 0))
    plan = [
        kill_plan.Kill(victim=victim, save=save, early=victim == "server", part=0.5, luck=0.9)
        for victim, save in moments
    ]
    kills.launched_run(memory_path, "run", random.Random(0), damage, plan)
    assert (damage.launched, plan) == (len(moments), [])
    assert expected.difference(record(memory_path / "run")) is None


@pytest.mark.timeout(600)
def test_a_chain_of_kills_in_one_epoch_over_1_3_2_8_and_4_ranks(memory_path):
    """Inside of a save and at other moments."""
    expected, damage = kills.prepare(memory_path)
    kills.make_checkpoints(memory_path / "run")
    moments = (("first", 1), ("rank", 1), ("loader", 0), ("all", 1))
    plan = [kill_plan.Kill(victim=victim, save=save, early=False, part=0.9, luck=0.9) for victim, save in moments]
    kills.pooled_run(memory_path, "run", random.Random(0), damage, plan, sizes=(1, 3, 2, 8, 4))
    assert (damage.pooled, plan) == (len(moments), [])
    assert expected.difference(record(memory_path / "run")) is None


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_launcher_of_two_nodes_that_is_killed_and_started_again_rejoins(tmp_path):
    assert_nothing_lost(nodes.campaign(Order(folder=tmp_path, count=1)))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_signals_to_anybody_stop_all_ranks_after_one_step_saved_once(tmp_path):
    assert_nothing_lost(signals.campaign(Order(folder=tmp_path, count=4)))


@needs_strace
def test_a_save_can_be_killed_at_every_call_that_changes_the_disk(tmp_path):
    assert_nothing_lost(syscalls.campaign(Order(folder=tmp_path, count=0, quick=True)))


@needs_strace
def test_the_power_may_fail_at_any_moment_of_a_save(tmp_path):
    assert_nothing_lost(power_loss.campaign(Order(folder=tmp_path, count=0)))


@needs_strace
def test_a_disk_that_refuses_costs_no_checkpoint_and_ends_no_training(tmp_path):
    assert_nothing_lost(disk.campaign(Order(folder=tmp_path, count=0, quick=True)))


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.timeout(900)
def test_a_file_system_that_fails_under_a_run_costs_nothing(tmp_path):
    assert_nothing_lost(filesystems.campaign(Order(folder=tmp_path, count=0, quick=True)))


@needs_strace
@pytest.mark.timeout(600)
def test_data_that_is_away_or_broken_costs_no_training(tmp_path):
    assert_nothing_lost(data.campaign(Order(folder=tmp_path, count=0, quick=True)))


def test_every_damage_to_a_checkpoint_is_found(memory_path):
    assert_nothing_lost(corruption.campaign(Order(folder=memory_path, count=30, quick=True)))


@needs_strace
def test_the_command_prints_one_table_and_repeats_a_single_injection(tmp_path, capsys):
    assert main(["power", "--only", "3", "--keep", str(tmp_path / "kept")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["campaign", "injections"] and printed[1].split()[:4] == ["power", "1", "0", "0"]
    assert (tmp_path / "kept" / "power" / "save.strace").exists()


LARGE = {
    "kills": 200,
    "launchers": 50,
    "restarts": 50,
    "nodes": 20,
    "signals": 100,
    "syscalls": 0,
    "power": 0,
    "disk": 0,
    "filesystems": 0,
    "healthy": 0,
    "soak": 40,
    "evaluations": 100,
    "data": 0,
    "corruption": 1000,
}


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_large(name, tmp_path):
    if name in ("syscalls", "power", "disk") and shutil.which("strace") is None:
        pytest.skip("strace is missing: apt-get install strace")
    assert_nothing_lost(CAMPAIGNS[name][0](Order(folder=tmp_path, count=LARGE.get(name, 0), seed=1)))
