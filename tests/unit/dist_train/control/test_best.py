"""Which evaluation is the best, when early stopping has had enough, and how figures that are no number are written."""

import json
import math
from dataclasses import asdict

import pytest

from dist_train.checkpoint.state import Snapshot, TrainState
from dist_train.config.schema import RunConfig
from dist_train.rundir import strict_json
from dist_train.trainer import _note_best, stops_early

NAN, INF = math.nan, math.inf


def config(best_is="max", **stopping):
    content = {"data": {"name": "digits"}, "model": {"name": "mlp"}, "eval": {"best": "score", "best_is": best_is}}
    return RunConfig.model_validate({**content, "task": {"name": "own:Task"}, "train": {"early_stopping": stopping}})


def run(figures, best_is="max", patience=3, min_delta=0.0, restart=False):
    """The state after evaluations at steps 1, 2, …, up to where early stopping ends it."""
    settings, state = config(best_is, patience=patience, min_delta=min_delta), TrainState()
    for state.step, figure in enumerate(figures, 1):
        state.metrics = {"score": figure}
        _note_best(settings, state)
        if restart:
            state = TrainState(**strict_json.untagged(json.loads(json.dumps(strict_json.tagged(asdict(state))))))
        if stops_early(settings, state):
            break
    return state


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("nothing", [NAN, INF, -INF])
@pytest.mark.parametrize("best_is", ["max", "min"])
def test_a_figure_that_is_no_number_never_wins(nothing, best_is, restart):
    better = sorted([0.1, 0.2, 0.3], reverse=best_is == "min")
    for place in range(4):
        state = run([*better[:place], nothing, *better[place:]], best_is, restart=restart)
        assert (state.best_value, state.best_step) == (better[-1], 4 if place < 3 else 3)
    state = run([nothing] * 5, best_is, restart=restart)
    assert (state.best_step, state.step, state.stale) == (None, 3, 3)  # and counts as no improvement


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_slow_gain_counts_once_it_has_added_up(sign, restart):
    best_is = "max" if sign == 1 else "min"
    slow = [sign * value for value in (0.50, 0.504, 0.508, 0.512, 0.516, 0.520, 0.524, 0.524)]
    state = run(slow, best_is, patience=3, min_delta=0.01, restart=restart)
    assert (state.step, state.stale, state.improved_value) == (8, 1, sign * 0.524)
    assert (state.best_value, state.best_step) == (sign * 0.524, 7)  # the best is the plain best
    assert run(slow, best_is, patience=2, min_delta=0.01, restart=restart).step == 3
    state = run([sign * value for value in (0.5, 0.6, 0.609, 0.55, 0.605)], best_is, 3, 0.01, restart)
    assert (state.step, state.best_step, state.improved_value) == (5, 3, sign * 0.6)


LOWER = ("loss", "val_loss", "loss/box", "focalLoss", "mean_absolute_error", "error_rate", "top1-error", "MAE", "rmse")
LOWER += ("bits_per_byte", "perplexity", "nll", "wer", "cross_entropy")
HIGHER = ("accuracy", "r2", "mean_iou", "f1", "maestro", "lossless_share", "neg_mean_squared_error", "score")


@pytest.mark.parametrize("metric", LOWER + HIGHER)
def test_a_metric_says_by_its_name_whether_lower_is_better(metric):
    content = {"data": {"name": "digits"}, "model": {"name": "mlp"}, "task": {"name": "own:Task"}}
    settled = [
        RunConfig.model_validate({**content, "eval": {"best": metric, "best_is": asked}}).best_is
        for asked in ("auto", "max", "min")
    ]
    assert settled == ["min" if metric in LOWER else "max", "max", "min"]


def test_checkpoints_of_before_go_on():
    state = TrainState(step=4, best_value=0.5, best_step=4, stale=1, metrics={"score": 0.505})
    _note_best(config(patience=2, min_delta=0.01), state)
    assert (state.best_value, state.stale) == (0.505, 2)
    state = TrainState(step=4, best_value=NAN, best_step=2, stale=1, metrics={"score": 0.1})
    _note_best(config(patience=2), state)
    assert (state.best_value, state.best_step, state.stale) == (0.1, 4, 0)


def refused(word):
    raise AssertionError(f"{word} is no JSON")


def test_a_state_with_figures_that_are_no_numbers_comes_back_from_valid_json():
    values = {"w/low": -INF, "w/list": [1.5, NAN, [INF]], "w/text": "nan", "w/float": {"float": "x"}}
    other = {"optimizer": values, "progress": asdict(TrainState(metrics={"score": NAN}, best_value=INF))}
    files = Snapshot(model={}, optimizer={}, ema=None, other=other).other_files()
    json.loads(files["state.json"], parse_constant=refused)
    back = strict_json.untagged(json.loads(files["state.json"]))
    assert repr(back) == repr(other)


def test_for_others_they_are_words():
    assert json.loads(strict_json.to_json({"a": [NAN, INF, -INF, 0.1]})) == {"a": ["nan", "inf", "-inf", 0.1]}
