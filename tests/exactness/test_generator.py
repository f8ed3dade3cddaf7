"""The generator draws all of the schema, and its tables have nothing that is not there."""

from itertools import product

import pytest
from pydantic import Field

from dist_train.config.schema import RunConfig, Section
from tests.exactness import dimensions as drawn
from tests.exactness.covering import covering, pairs, wanted
from tests.exactness.dimensions import Undrawable, dimensions, keys
from tests.exactness.draws import at_random, config_of, general, is_valid
from tests.exactness.tables import FIXED, LEVELS, ONCE, UNFIT


def test_every_key_is_drawn_or_has_a_row():
    paths = {dimension.path for dimension in dimensions()}
    assert [key for key in keys() if key not in paths and key not in FIXED] == []


def test_the_tables_name_keys_that_exist():
    known = {*keys(), *(general(key) for key in keys())}
    named = [*FIXED, *LEVELS, *(path for path, _ in ONCE), *(path for row in UNFIT for path in (row[0], row[2]))]
    assert [path for path in named if path not in known] == []


def test_a_new_key_is_drawn_from_its_type_on_its_first_day(monkeypatch):
    class Grown(RunConfig):
        gentle: bool = False
        share: float = Field(default=0.5, gt=0, lt=1)

    monkeypatch.setattr(drawn, "RunConfig", Grown)
    found = {dimension.path: dimension.levels for dimension in dimensions()}
    assert found["gentle"] == (False, True) and found["share"] == (0.5, 0.1)


def test_a_key_that_cannot_be_drawn_fails(monkeypatch):
    class Deep(Section):
        motto: str = ""

    class Grown(RunConfig):
        deep: Deep = Deep()

    monkeypatch.setattr(drawn, "RunConfig", Grown)
    with pytest.raises(Undrawable, match=r"deep\.motto: give them a row in tests/exactness/tables\.py"):
        dimensions()


def test_draws_are_valid_and_the_same_for_the_same_seed():
    draws = at_random(30, seed=3)
    assert len(draws) == 30 and all(is_valid(draw) for draw in draws)
    assert draws == at_random(30, seed=3) != at_random(30, seed=4)


def names(pair):
    """The two paths, and those that the name of a component stands for in place of its keys."""
    (one, _), (two, _) = pair
    yield from product((one, one.partition(".")[0]), (two, two.partition(".")[0]))


def test_the_set_of_pairs_has_every_pair_that_can_be(pairs_of_choices):
    """What is missing of all pairs are those of a component's name and keys of another component, and what is unfit: a
    component by its name or with any key of its own; and of what is absent and a key inside of it."""
    draws = pairs_of_choices
    assert draws == list(covering()), "also where another worker has found them"
    missing = wanted().difference(*map(pairs, draws))
    owners = {"data", "model", "optimizer", "schedule", "task"}
    unexplained = [sorted(pair) for pair in missing if len({path.partition(".")[0] for path, _ in pair} & owners) != 1]
    unfit = {frozenset((general(path), row[2])) for row in UNFIT for path in (row[0], f"{row[0]}.any.name")}
    unexplained = [pair for pair in unexplained if not (len(pair) == 2 and pair[1][0].startswith(f"{pair[0][0]}."))]
    assert [p for p in unexplained if not any(frozenset((a, b)) in unfit for a, b in names(p))] == []
    assert all(config_of(draw) for draw in draws)
