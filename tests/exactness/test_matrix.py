"""Configs drawn from the schema end in the same bits on any number of ranks, or are refused before the first step."""

from collections import Counter

import pytest
import yaml

from tests.exactness.draws import at_random, config_of
from tests.exactness.matrix import MOST_REFUSED

SHARES = 12
"""Tests that the set of all pairs is cut into, for as many workers as there are."""
LONG_SHARES, LONG = 12, 25


def _assert_right(matrix, draws, thorough):
    kinds, wrong = Counter(), []
    for draw in draws:
        verdict = matrix.verdict(draw, thorough)
        kinds[verdict.kind] += 1
        if verdict.is_wrong:
            wrong.append(f"{verdict.detail}\n{yaml.safe_dump(config_of(draw), sort_keys=False)}")
    assert not wrong, f"{len(wrong)} of {len(draws)} are wrong:\n" + "\n".join(wrong)
    return kinds


@pytest.mark.parametrize("share", range(SHARES))
def test_every_pair_of_choices_is_exact(matrix, pairs_of_choices, share):
    _assert_right(matrix, pairs_of_choices[share::SHARES], thorough=False)


@pytest.mark.long
@pytest.mark.parametrize("share", range(LONG_SHARES))
def test_configs_at_random_are_exact_and_few_are_refused(matrix, share):
    draws = at_random(LONG * LONG_SHARES, seed=1)[share::LONG_SHARES]
    assert _assert_right(matrix, draws, thorough=True)["refused"] <= MOST_REFUSED * len(draws) + 1
