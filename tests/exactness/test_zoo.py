"""Users' modules with every habit end in the same bits on any number of ranks, or are refused by name in time."""

import pytest

from tests.exactness.zoo import Animal
from tests.exactness.zoo.animals import animals


@pytest.mark.parametrize("name", animals())
def test_an_animal_is_exact_or_refused_by_name(matrix, name):
    verdict = matrix.habit(animals()[name])
    assert not verdict.is_wrong, verdict.detail


def test_a_model_that_knows_the_number_of_ranks_is_found_out(matrix):
    """So the net has no hole as large as this."""
    verdict = matrix.habit(Animal(config={"model": {"name": "tests.exactness.zoo.behaviour:KnowsTheRanks"}}))
    assert verdict.is_wrong and "train row of step 1: loss" in verdict.detail
