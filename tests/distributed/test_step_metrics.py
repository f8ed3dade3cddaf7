"""Losses of single steps, read an interval at a time; and what is not finite ends all ranks together."""

import math
from dataclasses import replace

import torch

from dist_train.config.schema import DistributedConfig, RunConfig
from dist_train.config.shares import share
from dist_train.errors import UserError
from dist_train.parallel.process_group import ProcessGroup
from dist_train.step_metrics import StepMetrics, StepResult

MICROBATCHES = 4


def _metrics(group):
    batch = {"global_size": 8, "microbatches": MICROBATCHES}
    config = RunConfig.model_validate({"data": {"name": "digits"}, "model": {"name": "mlp"}, "batch": batch})
    return StepMetrics(group, config, steps_per_epoch=10)


def _result(ranks, step, loss, norm=1.5, applied=True):
    own = share(ranks.rank, ranks.world_size, MICROBATCHES)
    losses = {number: torch.tensor(loss(step, number)) for number in own}
    return StepResult(
        step=step,
        losses=losses,
        counts=dict.fromkeys(own, 2),
        indices={number: torch.tensor([10 * step + number, 90]) for number in own},
        gradient_norm=torch.tensor(norm),
        lr=0.1 * step,
        applied=applied,
    )


def _rows(ranks):
    with ProcessGroup(ranks, DistributedConfig()) as group:
        metrics = _metrics(group)
        rows = []
        for step in range(1, 6):
            metrics.add(_result(ranks, step, lambda step, number: step + number / 7))
            if step in (3, 5):
                rows.append(metrics.flush().rows)
        return [*rows, metrics.flush().rows]


def test_rows_have_every_step_and_are_the_same_on_all_ranks(run_ranks):
    alone = run_ranks(_rows, 1)[0]
    assert [[row["step"] for row in rows] for rows in alone] == [[1, 2, 3], [4, 5], []]
    first = alone[0][0]
    expected = math.fsum(torch.tensor(1 + number / 7).item() for number in range(MICROBATCHES)) / 8
    assert first == {"step": 1, "epoch": 0.1, "samples_seen": 8, "loss": expected, "lr": 0.1, "grad_norm": 1.5}
    for world_size in (2, 3):
        assert run_ranks(_rows, world_size) == [alone] * world_size


def _figures(ranks, name_of):
    with ProcessGroup(ranks, DistributedConfig()) as group:
        metrics = _metrics(group)
        for step in (1, 2):
            result = _result(ranks, step, lambda step, number: 1.0)
            sizes = {
                number: {name_of(number): (torch.tensor(step + number / 3), number + step)} for number in result.losses
            }
            metrics.add(replace(result, figures=sizes))
        try:
            report = metrics.flush()
        except UserError as error:
            return str(error)
        return [row["size"] for row in report.rows], report.figures


def test_figures_are_sums_by_counts_of_each_step_and_of_the_interval(run_ranks):
    parts = [[(torch.tensor(step + n / 3).item(), n + step) for n in range(MICROBATCHES)] for step in (1, 2)]
    means = [math.fsum(s for s, _ in part) / sum(n for _, n in part) for part in (*parts, parts[0] + parts[1])]
    for world_size in (1, 2, 3):
        assert run_ranks(_figures, world_size, _size) == [(means[:2], {"size": means[2]})] * world_size


def test_figures_of_another_name_in_one_microbatch_or_of_ours_are_refused_on_every_rank(run_ranks):
    for name_of in (_other, _ours):
        for said in run_ranks(_figures, 2, name_of):
            assert "all microbatches must have the same ones, and none of" in said


def _size(number):
    return "size"


def _other(number):
    return "size" if number < 3 else "sizes"


def _ours(number):
    return "loss"


def _bad(ranks, norm, applied):
    with ProcessGroup(ranks, DistributedConfig()) as group:
        metrics = _metrics(group)
        for step in (6, 7, 8):
            nan = step == 7 and norm == 1.5
            loss = lambda step, number, nan=nan: math.nan if number == 3 and nan else 1.0  # noqa: E731
            metrics.add(_result(ranks, step, loss, norm if step == 7 else 1.5, applied or step != 7))
        report = metrics.flush()
        return [row["step"] for row in report.rows], report.skipped, report.diverged


def test_a_loss_that_is_not_finite_is_told_on_every_rank_and_ends_the_report(run_ranks):
    for steps, skipped, diverged in run_ranks(_bad, 2, 1.5, True):
        assert steps == [6, 7] and skipped == []
        assert diverged.startswith("step 7: the loss of microbatch 3 is not finite (training samples 73, 90). Nothing")


def test_a_gradient_that_is_not_finite_is_told_on_every_rank(run_ranks):
    for steps, _, diverged in run_ranks(_bad, 2, math.inf, True):
        assert steps == [6, 7] and diverged.startswith("step 7: the gradient is not finite. Nothing")


def test_a_step_that_was_skipped_is_reported_and_the_next_ones_follow(run_ranks):
    for steps, skipped, diverged in run_ranks(_bad, 2, 1.5, False):
        assert steps == [6, 7, 8] and diverged is None
        assert skipped == [
            "! step 7: the loss of microbatch 3 is not finite (training samples 73, 90); its update was skipped"
        ]
