"""Where the time of real trainings goes, and traces of their steps."""

import gzip
import json

import pytest

from dist_train.report.budget import OF_A_STEP, PHASES
from dist_train.report.facts import gather
from dist_train.rundir.layout import RunDir
from tests.distributed.training import result, train, write_configs
from tests.faults import slowness
from tests.faults.tally import Order
from tests.rank_pool import run_ranks


def test_a_slow_disk_is_named_and_no_time_is_missing(tmp_path):
    slowness.prepare(tmp_path)
    kind, said = slowness.named(tmp_path, "r", "slow disk", "train.duration=12 steps")
    assert kind == "input read" and "read is the stage" in said and "try loader.workers=" in said
    facts = gather(tmp_path / "r")
    assert [one.step for one in facts.spent] == [5, 10, 12] and facts.setting is not None
    assert sum(one.budget.steps for one in facts.spent) == 11  # all but the first, which has what is done once
    passed = facts.spent[-1].budget.seconds + facts.spent[-2].budget.seconds
    assert passed == pytest.approx(facts.steps.unix[-1] - facts.steps.unix[4], abs=0.3)
    assert said[1:] in (tmp_path / "r/report.html").read_text()
    row = json.loads(RunDir(tmp_path / "r").metrics.read_text().splitlines()[9])["time"]
    assert list(row["budget"]) == list(PHASES) and set(row["ranks"]) == {"0", "1"}
    for place, phase in enumerate(PHASES):
        mean = sum(spent[place] for spent in row["ranks"].values()) / 2
        expected = mean / row["steps"] if phase in OF_A_STEP else mean
        assert row["budget"][phase] == pytest.approx(expected, rel=0.01, abs=1e-9)


def test_a_rank_that_is_late_in_its_backward_is_named(tmp_path):
    slowness.prepare(tmp_path)
    [said] = slowness.told(tmp_path, "r", 2, 1, "backward", 0.1)
    assert "! rank 1 is late: " in said and " a step in its backward (" in said


def test_a_profile_changes_no_bit_and_has_the_steps_that_were_asked_for(tmp_path):
    write_configs(tmp_path)
    few = (str(tmp_path), "base.yaml")
    assert run_ranks(train, 2, *few, "plain", "train.duration=6 steps") == [0, 0]
    words = ("train.duration=6 steps", "--profile", "3-4", "--profile-ranks", "1")
    assert run_ranks(train, 2, *few, "profiled", *words) == [0, 0]
    assert result(tmp_path / "profiled") == result(tmp_path / "plain")
    run = RunDir(tmp_path / "profiled")
    [path] = run.profiles.iterdir()
    assert path == run.profile(3, 4, rank=1)
    names = {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert {"step 3", "step 4", "Optimizer.step#SGD.step"} <= names and not {"step 2", "step 5"} & names
    said = (run.logs / "rank0.log").read_text()
    assert f"profile of steps 3 to 4 of rank 1: {path}; https://ui.perfetto.dev" in said
    # Its steps are over: the run goes on and says so.
    more = ("train.duration=7 steps", "--allow-change", "train.duration", *words[1:])
    assert run_ranks(train, 2, *few, "profiled", *more) == [0, 0]
    assert "! --profile 3-4: the run is past these steps" in (run.logs / "rank0.log").read_text()


@pytest.mark.parametrize("words", [("5-7",), ("3-2",), ("3", "--profile-ranks", "2")])
def test_a_profile_of_what_there_is_not_is_refused_before_the_first_step(tmp_path, words):
    write_configs(tmp_path)
    assert run_ranks(train, 2, str(tmp_path), "base.yaml", "r", "train.duration=6 steps", "--profile", *words) == [2, 2]
    assert not RunDir(tmp_path / "r").metrics.exists()


# ---------------------------------------------------------------- long


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("campaign", [slowness.bottlenecks, slowness.late_ranks])
def test_whatever_makes_a_training_slow_is_named(campaign, tmp_path):
    tally = campaign(Order(folder=tmp_path, count=0))
    assert tally.injections >= 8 and tally.failures == []
