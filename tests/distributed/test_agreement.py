"""Ranks of different speeds agree on what was asked of one of them, at the same step, without asking in each step."""

import time

import pytest

from dist_train.config.schema import DistributedConfig
from dist_train.control.agreement import MOST_STEPS, Agreement
from dist_train.control.stop import Request, StopFlag
from dist_train.parallel.process_group import ProcessGroup

STEPS, ASKED = 30, 12


def _answers(ranks, seconds):
    """This rank's answer after each step, and in how many steps it asked; rank 1 is told to stop after step ASKED."""
    with ProcessGroup(ranks, DistributedConfig()) as group:
        flag, answers, asked = StopFlag(), [], 0
        agreement = Agreement(group, flag)
        for step in range(STEPS):
            time.sleep(seconds * ranks.rank)  # what a step takes
            if step == ASKED and ranks.rank == 1:
                flag.request = Request.TERMINATE
            answers.append(agreement.next())
            asked += agreement._under_way is not None
        return [int(answer) for answer in (*answers, agreement.close())], asked


@pytest.mark.parametrize("seconds", [0.0, 0.06])
def test_all_ranks_answer_alike_and_soon(run_ranks, seconds):
    (first, asked), *others = run_ranks(_answers, 3, seconds)
    assert all(answers == first for answers, _ in others)
    assert not any(first[:ASKED]) and Request.TERMINATE in first[ASKED : ASKED + MOST_STEPS + 1]
    # Rank 2 is the slowest; a step of more than half of EVERY_S is asked about by itself.
    assert asked == STEPS if seconds == 0.06 else asked < STEPS
