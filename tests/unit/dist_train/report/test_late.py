"""Which rank is late, and where, from what each rank has measured by itself (dist_train/report/late.py)."""

import pytest

from dist_train.report.budget import COLUMNS
from dist_train.report.late import IN_A_ROW, LONG_S, LateRanks

STEP = {"input": 0.01, "transfer": 0.01, "forward": 0.03, "backward": 0.05, "optimizer": 0.02}


def rank(microbatches=2, more=None, core=0.0, wait=None, slowest=0.0):
    """A rank's row of 20 steps: STEP and `more` of each phase; it waits until the slowest is there."""
    spent = {phase: value + (more or {}).get(phase, 0.0) for phase, value in STEP.items()}
    wait = 0.01 + slowest - sum((more or {}).values()) if wait is None else wait
    own = {**spent, "exchange": wait}
    each = dict.fromkeys(("input", "transfer", "forward", "backward"), microbatches)
    row = {"steps": 20, "microbatches": 20 * microbatches, "low exchange": wait, "samples": 1, "median core": core}
    row |= {f"median {phase}": value / each.get(phase, 1) for phase, value in own.items()}
    row |= {phase: 20 * value for phase, value in own.items()}
    return [row.get(column, 0.0) for column in COLUMNS]


def looks(table, count, ranks=None):
    ranks = ranks or LateRanks()
    return [line for _ in range(count) for line in ranks.add(table)]


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize(
    ("phase", "where"),
    [("input", "loader"), ("forward", "forward"), ("backward", "backward"), ("optimizer", "optimizer")],
)
def test_the_late_rank_and_its_phase_are_told_once(victim, phase, where):
    table = [rank(more={phase: 0.2} if one == victim else None, slowest=0.2) for one in range(3)]
    ranks = LateRanks()
    assert looks(table, IN_A_ROW - 1, ranks) == []
    assert looks(table, 20, ranks) == [
        f"! rank {victim} is late: 0.2 s a step in its {where} (61 % of a step); all ranks wait for it"
    ]
    assert [(one.rank, one.phase) for one in ranks.late] == [(victim, phase)]


def test_a_change_is_told_and_the_end_of_it():
    ranks, fine = LateRanks(), [rank(), rank()]
    assert len(looks([rank(slowest=0.2), rank(more={"forward": 0.2}, slowest=0.2)], 5, ranks)) == 1
    assert looks([rank(slowest=0.25), rank(more={"forward": 0.25}, slowest=0.25)], 5, ranks) == []  # about the same
    assert "in its backward" in looks([rank(slowest=0.2), rank(more={"backward": 0.2}, slowest=0.2)], 5, ranks)[0]
    assert looks(fine, 5, ranks) == ["rank 1 keeps up with the others again"]
    assert ranks.late == [] and looks(fine, 20, ranks) == []


def test_nobody_is_late_who_does_not_keep_the_others():
    assert looks([rank(), rank(more={"forward": 0.01}, slowest=0.01)], 20) == []  # a tenth of a step
    assert looks([rank(), rank()], 20) == []
    assert looks([rank(more={"forward": 0.2}, slowest=0.2)], 20) == []  # alone
    # One rank has fewer microbatches, and takes as long for each of them.
    less = {phase: -value / 2 for phase, value in STEP.items() if phase != "optimizer"}
    assert looks([rank(microbatches=2), rank(microbatches=1, more=less)], 20) == []
    # It takes long and yet waits as long as the others: they do not wait for it.
    assert looks([rank(wait=0.3), rank(more={"forward": 0.2}, wait=0.3)], 20) == []
    # Rank 0 saves, and the other waits for that.
    assert looks([rank(), rank(wait=0.4)], 20) == []


def test_a_moment_is_no_lateness():
    ranks, late = LateRanks(), [rank(slowest=0.2), rank(more={"forward": 0.2}, slowest=0.2)]
    for _ in range(10):
        assert looks(late, IN_A_ROW - 1, ranks) == [] and looks([rank(), rank()], 1, ranks) == []


def test_waiting_for_a_core_is_told_after_a_minute():
    ranks, table = LateRanks(), [rank(slowest=0.2), rank(more={"forward": 0.2}, core=0.2, slowest=0.2)]
    seconds = 20 * (sum(STEP.values()) + 0.21)
    before = int(LONG_S / seconds)
    assert looks(table, before, ranks) == []
    assert "rank 1 is late: 0.2 s a step in its wait for a core" in looks(table, 2, ranks)[0]
