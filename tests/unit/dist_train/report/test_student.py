"""How sure a difference is, against scipy, which scikit-learn brings along."""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.report.student import MOST_SEEDS, POWER, paired, quantile, unpaired, upper_tail

few = settings(max_examples=25, deadline=None)
DEGREES = st.floats(1, 2000)
FIGURES = st.lists(st.integers(0, 359).map(lambda right: right / 359), min_size=2, max_size=12)


@pytest.fixture(scope="module")
def stats():
    """scipy's: not above, where every worker would import it."""
    from scipy import stats

    return stats


@few
@given(st.floats(0.5, 0.9999), DEGREES)
def test_quantiles_are_those_of_scipy(stats, share, degrees):
    assert quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=1e-8, abs=1e-9)


@few
@given(st.floats(0, 1e6), DEGREES)
def test_tails_are_those_of_scipy(stats, t, degrees):
    assert upper_tail(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-7, abs=1e-15)


@few
@given(FIGURES, FIGURES)
def test_intervals_are_those_of_scipy(stats, a, b):
    pairs = [after - before for before, after in zip(a, b, strict=False)]
    if len(pairs) >= 2 and statistics.stdev(pairs) > 1e-6:
        found, known = paired(pairs), stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((known.low, known.high), rel=1e-6, abs=1e-9)
        assert found.tells == (known.low > 0 or known.high < 0)
    if statistics.variance(a) + statistics.variance(b) > 1e-9:
        found, known = unpaired(a, b), stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((known.low, known.high), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 1.0), (0.5, 1.0), (0.2, 1.0), (0.003, 0.01), (-0.3, 0.4)])
def test_with_that_many_seeds_the_power_is_what_it_says(stats, mean, spread):
    """That of the t-test itself, from the noncentral t distribution: it is an approximation by one seed at most."""
    two = [mean - spread / math.sqrt(2), mean + spread / math.sqrt(2)]
    assert statistics.stdev(two) == pytest.approx(spread)
    count = 2 + paired(two).more

    def power(seeds):
        return stats.nct.sf(stats.t.ppf(0.975, seeds - 1), seeds - 1, math.sqrt(seeds) * abs(mean) / spread)

    assert power(count + 1) >= POWER > power(count - 2)


def test_figures_that_are_counts_do_not_pretend_to_have_no_spread():
    """Equal differences: half a percent in each of two seeds is no proof."""
    assert not paired([0.005] * 2).tells and paired([0.005] * 2).more == 4
    but_for_their_last_bits = [354 / 359 - 353 / 359, 348 / 359 - 347 / 359]
    assert len({*but_for_their_last_bits}) == 2 and not paired(but_for_their_last_bits).tells
    assert paired([0.005] * 6).tells and paired([0.005] * 6).more == 0
    assert not paired([0.0] * 6).tells and paired([0.0] * 6).more is None
    assert not unpaired([0.9, 0.9], [0.8, 0.8]).tells


def test_what_a_thousand_seeds_do_not_show_is_said_to_take_more():
    assert paired([1.0, -0.8]).more is None
    assert paired([1.0, -0.7]).more <= MOST_SEEDS - 2
