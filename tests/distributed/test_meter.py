"""Losses of single steps, read an interval at a time; and what is not finite ends all ranks together."""

import math

import torch

from dist_train.config.errors import ExitCode, UserError
from dist_train.config.schema import DistributedConfig
from dist_train.config.shares import share
from dist_train.meter import Meter, StepResult
from dist_train.process_group import ProcessGroup

MICROBATCHES = 4


def _meter(group):
    return Meter(group, microbatches=MICROBATCHES, global_batch=8, steps_per_epoch=10)


def _result(ranks, step, loss, norm=1.5):
    own = share(ranks.rank, ranks.world_size, MICROBATCHES)
    losses = {number: torch.tensor(loss(step, number)) for number in own}
    return StepResult(
        step=step, losses=losses, counts=dict.fromkeys(own, 2), gradient_norm=torch.tensor(norm), lr=0.1 * step
    )


def _rows(ranks):
    with ProcessGroup(ranks, DistributedConfig()) as group:
        meter = _meter(group)
        rows = []
        for step in range(1, 6):
            meter.add(_result(ranks, step, lambda step, number: step + number / 7))
            if step in (3, 5):
                rows.append(meter.flush())
        return [*rows, meter.flush()]


def test_rows_have_every_step_and_are_the_same_on_all_ranks(run_ranks):
    alone = run_ranks(_rows, 1)[0]
    assert [[row["step"] for row in rows] for rows in alone] == [[1, 2, 3], [4, 5], []]
    first = alone[0][0]
    expected = math.fsum(torch.tensor(1 + number / 7).item() for number in range(MICROBATCHES)) / 8
    assert first == {"step": 1, "epoch": 0.1, "samples_seen": 8, "loss": expected, "lr": 0.1, "grad_norm": 1.5}
    for world_size in (2, 3):
        assert run_ranks(_rows, world_size) == [alone] * world_size


def _bad(ranks, norm):
    with ProcessGroup(ranks, DistributedConfig()) as group:
        meter = _meter(group)
        meter.add(_result(ranks, 7, lambda step, number: math.nan if number == 3 and norm == 1.5 else 1.0, norm))
        try:
            meter.flush()
        except UserError as error:
            return str(error), error.code


def test_a_loss_that_is_not_finite_ends_every_rank(run_ranks):
    for message, code in run_ranks(_bad, 2, 1.5):
        assert message.startswith("step 7: the loss of microbatch 3 is not finite")
        assert code == ExitCode.NON_FINITE


def test_a_gradient_that_is_not_finite_ends_every_rank(run_ranks):
    for message, _ in run_ranks(_bad, 2, math.inf):
        assert message.startswith("step 7: the gradient is not finite")
