"""Users' modules with every habit end in the same bits on any number of ranks, or are refused by name in time."""

import pytest

from tests.exactness.zoo import behaviour
from tests.exactness.zoo.animals import MUST_BE_EQUAL, animals, herd, named

ALONE = animals()
IN_A_HERD = {named(room, kind) for room, kinds in MUST_BE_EQUAL.items() for kind in kinds}
"""One by one in the long suite; always as a herd, since none of them may be refused."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n in IN_A_HERD)) for n in ALONE])
def test_an_animal_is_exact_or_refused_by_name(matrix, name):
    verdict = matrix.habit(ALONE[name])
    assert not verdict.is_wrong, verdict.detail


@pytest.mark.parametrize("room", MUST_BE_EQUAL)
def test_a_herd_is_exact(matrix, room):
    """Where it is not, each animal by itself says which."""
    verdict = matrix.habit(herd(*MUST_BE_EQUAL[room]))
    if verdict.is_wrong:
        alone = {kind.__name__: matrix.habit(herd(kind)) for kind in MUST_BE_EQUAL[room]}
        pytest.fail(f"{verdict.detail}\n" + "\n".join(f"{n}: {v.detail}" for n, v in alone.items() if v.is_wrong))


def test_a_model_that_knows_the_number_of_ranks_is_found_out_even_in_a_herd(matrix):
    """So the net has no hole as large as this."""
    verdict = matrix.habit(herd(*MUST_BE_EQUAL["behaviour"], behaviour.KnowsTheRanks))
    assert verdict.is_wrong and "train row of step 1: loss" in verdict.detail
