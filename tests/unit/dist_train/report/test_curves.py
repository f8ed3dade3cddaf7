"""What a chart draws of a run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.report.curves import MOST_POINTS, decimated, figures, smoothed

VALUES = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=400)


@given(VALUES, st.integers(4, 60))
def test_few_points_keep_both_ends_and_every_peak(values, most):
    keep = decimated(values, most)
    assert keep == sorted(set(keep)) and len(keep) <= max(most, 0)
    if not values:
        return
    assert {0, len(values) - 1} <= {*keep}
    known = [value for value in values if value is not None]
    kept = [values[place] for place in keep if values[place] is not None]
    if known:
        assert (min(kept), max(kept)) == (min(known), max(known))


def test_one_peak_in_a_million_is_seen():
    values = [0.0] * 10**5
    values[77_777] = 1.0
    assert 77_777 in decimated(values, MOST_POINTS)


@given(VALUES)
def test_a_smoothed_line_stays_between_what_it_smooths(values):
    found = smoothed(values)
    assert len(found) == len(values)
    seen = []
    for value, mean in zip(values, found, strict=True):
        if value is not None:
            seen.append(value)
        assert (mean is None) == (not seen)
        if seen:
            assert min(seen) - 1e-6 * abs(min(seen)) - 1e-9 <= mean <= max(seen) + 1e-6 * abs(max(seen)) + 1e-9


def test_a_smoothed_line_is_the_weighted_mean_of_all_before():
    values = [math.sin(at) for at in range(300)]
    decay = 0.5 ** (1 / 3)
    weights = [decay ** (299 - at) for at in range(300)]
    mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
    assert smoothed(values)[-1] == pytest.approx(mean)


def test_figures_that_say_nothing_are_not_shown():
    rows = [{"step": 1, "loss": 2.0, "accuracy": 0.5, "f1_micro": 0.5, "per_class": {}, "split": "evaluation"}]
    assert figures(rows) == ["loss", "accuracy"]
    assert figures([*rows, {**rows[0], "f1_micro": 0.6}]) == ["loss", "accuracy", "f1_micro"]
    assert figures([]) == []
