"""The learning rate: a pure function of the step, and torch's schedulers on the same settings."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from dist_train.config.schema import Constant, Cosine, OneCycle, Polynomial, ScheduleConfig, Step
from dist_train.config.types import Duration
from dist_train.optim.schedule import Schedule

PEAK = 0.3


def schedule(config: ScheduleConfig, total_steps: int = 100) -> Schedule:
    return Schedule(config=config, peak=PEAK, total_steps=total_steps, steps_per_epoch=10, global_batch=8)


def steps(n: float) -> Duration:
    return Duration(float(n), "steps")


def by_torch(make, lr: float = PEAK, total_steps: int = 100) -> list[float]:
    """What a torch scheduler gives at every step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, seen = make(optimizer), []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (Constant(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        (Cosine(final=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=100, eta_min=0.1 * PEAK)),
        (
            Step(milestones=[steps(30), steps(60)], gamma=0.2),
            lambda o: lr_scheduler.MultiStepLR(o, [30, 60], gamma=0.2),
        ),
        (Polynomial(power=2.0), lambda o: lr_scheduler.PolynomialLR(o, total_iters=100, power=2.0)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_as_torch(config, make):
    ours = [schedule(config).lr(step) for step in range(100)]
    assert ours == pytest.approx(by_torch(make), rel=0, abs=1e-9)


@pytest.mark.parametrize("total_steps", [7, 100, 997])
@pytest.mark.parametrize("rise", [0.05, 0.3, 0.5])
def test_one_cycle_as_torch(total_steps, rise):
    ours = schedule(OneCycle(rise=rise, start=0.04, final=0.04 / 1e4), total_steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    theirs = lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=total_steps, pct_start=rise, cycle_momentum=False)
    for step in range(total_steps):
        assert ours.lr(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=0, abs=1e-9), step
        optimizer.step()
        if step < total_steps - 1:
            theirs.step()


def test_warmup_as_torch():
    def make(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 21, total_iters=20)
        fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=80)
        return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[20])

    config = Cosine(warmup=Duration(2.0, "epochs"))
    assert [schedule(config).lr(step) for step in range(100)] == pytest.approx(by_torch(make), rel=0, abs=1e-9)


CONFIGS = st.one_of(
    st.builds(Constant, warmup=st.builds(steps, st.integers(0, 60))),
    st.builds(Cosine, warmup=st.builds(steps, st.integers(0, 60)), final=st.floats(0, 1)),
    st.builds(
        Step,
        warmup=st.builds(steps, st.integers(0, 60)),
        milestones=st.lists(st.builds(steps, st.integers(61, 400)), min_size=1, max_size=4),
        gamma=st.floats(0.01, 1),
    ),
    st.builds(Polynomial, warmup=st.builds(steps, st.integers(0, 60)), power=st.floats(0.5, 3), final=st.floats(0, 1)),
)


@given(CONFIGS, st.integers(61, 500))
def test_rises_to_the_peak_and_never_again(config, total_steps):
    laid_out = schedule(config, total_steps)
    rates = [laid_out.lr(step) for step in range(total_steps + 1)]
    top = laid_out.warmup_steps
    assert rates[top] == PEAK
    assert all(a < b for a, b in zip(rates[:top], rates[1 : top + 1], strict=True))
    assert all(a >= b for a, b in zip(rates[top:-1], rates[top + 1 :], strict=True))
    rise = [b - a for a, b in zip([0.0, *rates[:top]], rates[: top + 1], strict=True)]
    assert rise == pytest.approx([PEAK / (top + 1)] * (top + 1))


@given(CONFIGS, st.integers(61, 500))
def test_ends_at_final_and_stays_there(config, total_steps):
    laid_out = schedule(config, total_steps)
    end = {"constant": 1.0, "step": None}.get(config.name, getattr(config, "final", None))
    if config.name == "step":
        end = config.gamma ** sum(milestone.value <= total_steps for milestone in config.milestones)
    assert laid_out.lr(total_steps) == pytest.approx(PEAK * end, abs=1e-15)
    if config.name in ("cosine", "polynomial"):
        assert laid_out.lr(total_steps + 1_000) == laid_out.lr(total_steps)


@given(
    st.builds(OneCycle, rise=st.floats(0.01, 0.99), start=st.floats(0, 1), final=st.floats(0, 1)), st.integers(1, 300)
)
def test_one_cycle_stays_between_its_ends_and_the_peak(config, total_steps):
    laid_out = schedule(config, total_steps)
    rates = [laid_out.lr(step) for step in range(total_steps)]
    assert all(PEAK * min(config.start, config.final) - 1e-12 <= rate <= PEAK + 1e-12 for rate in rates)
    assert rates[-1] == pytest.approx(PEAK * config.final, abs=1e-12)


@given(CONFIGS, st.permutations(range(0, 120, 7)))
def test_depends_on_the_step_alone(config, order):
    in_order = {step: schedule(config).lr(step) for step in sorted(order)}
    laid_out = schedule(config)
    assert {step: laid_out.lr(step) for step in order} == in_order
    assert all(type(rate) is float and math.isfinite(rate) for rate in in_order.values())


def test_units_agree():
    given_in = [Duration(20.0, "steps"), Duration(2.0, "epochs"), Duration(160.0, "samples")]
    curves = [[schedule(Cosine(warmup=warmup)).lr(step) for step in range(100)] for warmup in given_in]
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.parametrize(
    "config", [Cosine(warmup=steps(500)), Polynomial(warmup=steps(500)), Constant(warmup=steps(500))]
)
def test_a_warmup_longer_than_the_training_only_rises(config):
    rates = [schedule(config).lr(step) for step in range(100)]
    assert all(a < b for a, b in zip(rates, rates[1:], strict=False)) and rates[-1] < PEAK


def test_needs_no_torch():
    code = "import sys, dist_train.optim.schedule; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
