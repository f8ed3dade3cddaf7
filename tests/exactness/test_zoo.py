"""Users' modules with every habit end in the same bits on any number of ranks, or are refused by name in time."""

import pytest

from tests.exactness.zoo.animals import animals


@pytest.mark.parametrize("name", animals())
def test_an_animal_is_exact_or_refused_by_name(matrix, name):
    verdict = matrix.habit(animals()[name])
    assert not verdict.is_wrong, verdict.detail
