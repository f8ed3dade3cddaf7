"""Student's t: how sure a difference of means is, from few runs. No scipy in the product; a test compares with it."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE, POWER = 0.95, 0.80
MOST_SEEDS = 1_000
"""More than anybody trains: a difference that needs them is called too small to be seen."""
_SIGN_TEST = 6
"""Equal differences from which on their sign alone tells: 2 / 2⁶ < 5 %."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A difference of means, and how sure it is.

    Attributes:
        difference: B - A, in the figure's own unit.
        low, high: the 95 % confidence interval.
        seeds: of the smaller side.
        tells: whether the interval leaves out zero.
        more: further seeds on each side with which the test would tell in 80 % of all cases, if the difference is what
            it seems; 0 where it tells, None where they are more than a thousand or nobody can say.
    """

    difference: float
    low: float
    high: float
    seeds: int
    tells: bool
    more: int | None


def paired(differences: Sequence[float]) -> Estimate:
    """Of B - A for each of two or more seeds: the one-sample t interval of their mean
    (https://www.itl.nist.gov/div898/handbook/eda/section3/eda352.htm).

    Figures such as an accuracy are counts, so a few differences may be equal. Their spread is then unknown, not zero,
    and the sign test decides.
    """
    count, mean, spread = len(differences), statistics.fmean(differences), statistics.stdev(differences)
    if spread <= 1e-9 * abs(mean):  # equal, but for their last bits
        tells = mean != 0 and count >= _SIGN_TEST
        more = 0 if tells else None if mean == 0 else _SIGN_TEST - count
        return Estimate(difference=mean, low=mean, high=mean, seeds=count, tells=tells, more=more)
    half = quantile((1 + CONFIDENCE) / 2, count - 1) * spread / math.sqrt(count)
    needed = _needed(mean, spread, lambda seeds: seeds - 1)
    return _estimate(mean, half, count, needed)


def unpaired(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Of two or more figures on each side, whose spreads may differ: Welch's interval, with Satterthwaite's degrees of
    freedom (Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28)."""
    mean = statistics.fmean(b) - statistics.fmean(a)
    of_a, of_b = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    fewer = min(len(a), len(b))
    if of_a + of_b == 0:
        return Estimate(difference=mean, low=mean, high=mean, seeds=fewer, tells=False, more=None)
    degrees = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    half = quantile((1 + CONFIDENCE) / 2, degrees) * math.sqrt(of_a + of_b)
    needed = _needed(mean, math.sqrt(statistics.variance(a) + statistics.variance(b)), lambda seeds: 2 * (seeds - 1))
    return _estimate(mean, half, fewer, needed)


def _estimate(mean: float, half: float, seeds: int, needed: int | None) -> Estimate:
    tells = abs(mean) > half
    more = 0 if tells else None if needed is None else max(1, needed - seeds)
    return Estimate(difference=mean, low=mean - half, high=mean + half, seeds=seeds, tells=tells, more=more)


def _needed(mean: float, spread: float, degrees: Callable[[int], int]) -> int | None:
    """The smallest n with n ≥ (t(1 - α/2) + t(1 - β))² (spread / mean)², both of n's own degrees of freedom
    (https://www.itl.nist.gov/div898/handbook/prc/section2/prc222.htm)."""

    def is_enough(seeds: int) -> bool:
        both = quantile((1 + CONFIDENCE) / 2, degrees(seeds)) + quantile(POWER, degrees(seeds))
        return math.sqrt(seeds) * abs(mean) >= both * spread

    if not is_enough(MOST_SEEDS):
        return None
    too_few, enough = 1, MOST_SEEDS
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return enough


def quantile(share: float, degrees: float) -> float:
    """The t that a `share` from 0.5 to 1 of Student's distribution lies below, by Newton's method: to the right of zero
    the tail is convex, so that it comes to the root from the left and never past it."""
    log_height = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(math.pi * degrees) / 2
    t = 0.0
    for _ in range(200):
        density = math.exp(log_height - (degrees + 1) / 2 * math.log1p(t * t / degrees))
        step = (upper_tail(t, degrees) - (1 - share)) / density
        t += step
        if abs(step) <= 1e-13 * t:
            break
    return t


def upper_tail(t: float, degrees: float) -> float:
    """The probability of more than `t` ≥ 0: half of I_x(ν/2, 1/2) at x = ν / (ν + t²) (https://dlmf.nist.gov/8.17)."""
    x, a, b = degrees / (degrees + t * t), degrees / 2, 0.5
    if x < (a + 1) / (a + b + 2):
        return _incomplete_beta(x, a, b) / 2
    return (1 - _incomplete_beta(t * t / (degrees + t * t), b, a)) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by its continued fraction (https://dlmf.nist.gov/8.17#v), evaluated from the front with Lentz's method
    as in https://dlmf.nist.gov/3.10#iii; it converges fast for x < (a + 1) / (a + b + 2)."""
    if x <= 0:
        return 0.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    value = upper = 1.0
    lower = 0.0
    for number in range(1, 10_000):
        half = number // 2
        if number % 2:
            factor = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            factor = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        lower = 1 / (1 + factor * lower)
        upper = 1 + factor / upper
        value *= lower * upper
        if abs(lower * upper - 1) < 1e-15:
            break
    return front / value
