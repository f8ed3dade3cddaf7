"""A small set of draws in which every pair of choices occurs, and every other value once."""

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations, islice
from typing import Any

from tests.exactness.dimensions import Dimension
from tests.exactness.draws import Draw, build, fits, general, is_seldom, is_valid, known
from tests.exactness.tables import UNFIT

Feature = tuple[str, str]
"""(key without its component's name, level): what pairs are made of."""
_LIMITED = {path for row in UNFIT for path in (row[0], row[2])}
_TRIES = 16
"""To find a valid draw with a pair in it, before it counts as one that cannot be."""
_ENOUGH = 6
"""Draws to choose the best of."""


def feature(dimension: Dimension, level: Any) -> Feature:
    """Of a number that may be left out it counts only whether it is."""
    optional = None in dimension.levels and any(isinstance(other, int | float) for other in dimension.levels)
    return general(dimension.path), "a number" if optional and level is not None else str(level)


def features(draw: Draw) -> dict[Feature, bool]:
    """What a draw covers: True for a choice, of which pairs are made, False for what is enough to occur."""
    return {
        feature(known()[path], level): known()[path].choice and not is_seldom(known()[path], level)
        for path, level in draw.items()
    }


def pairs(draw: Draw) -> set[frozenset[Feature]]:
    """Every pair of choices of the draw, and every other value alone."""
    found = features(draw)
    both = combinations([name for name, is_choice in found.items() if is_choice], 2)
    return {frozenset(pair) for pair in both} | {frozenset([name]) for name in found}


def wanted() -> set[frozenset[Feature]]:
    """All there are to cover; some cannot be."""
    choices: dict[str, set[Feature]] = {}
    alone = set()
    for dimension in known().values():
        for level in dimension.levels:
            alone.add(feature(dimension, level))
            if dimension.choice and not is_seldom(dimension, level):
                choices.setdefault(general(dimension.path), set()).add(feature(dimension, level))
    both = combinations(choices.values(), 2)
    found = {frozenset((one, other)) for first, second in both for one in first for other in second}
    return found | {frozenset([name]) for name in alone}


def covering(seed: int = 13) -> Iterator[Draw]:
    """The draws, greedily made (AETG; Cohen et al., 1997): each begins with a pair that is missing, and every further
    level is the one that forms most missing pairs with what is there. The same for the same seed."""
    chance = random.Random(seed)
    missing = wanted()
    while missing:
        begun = min(missing, key=lambda pair: sorted(pair))
        # The later half takes what is seldom drawn too: some values need it beside them.
        partners = _partners(missing)
        tries = (_greedy(begun, partners, chance, seldom=number >= _TRIES // 2) for number in range(_TRIES))
        found = list(islice((draw for draw in tries if draw is not None), _ENOUGH))
        if found:
            best = max(found, key=lambda draw: len(pairs(draw) & missing))
            missing -= pairs(best)
            yield best
        missing.discard(begun)  # done now, or it cannot be


@cache
def in_pairs() -> tuple[Draw, ...]:
    """The set that `make test` works off; found once in a process."""
    return tuple(covering())


def _greedy(
    begun: frozenset[Feature], partners: dict[Feature, set[Feature]], chance: random.Random, seldom: bool
) -> Draw | None:
    """A draw that has the features `begun`; None where this try came to none."""
    forced = _with_parents(begun, chance)
    if forced is None:
        return None
    so_far = {name for name in begun if _is_choice(name)}

    def choose(dimension: Dimension, draw: Draw) -> Any:
        if dimension.path in forced:
            return forced[dimension.path]
        levels = [level for level in dimension.levels if not is_seldom(dimension, level)]
        levels = list(dimension.levels) if seldom or not levels else levels
        if dimension.path in _LIMITED:
            levels = [level for level in levels if fits({**forced, **draw, dimension.path: level})] or levels
        best = max(levels, key=lambda level: (_gain(feature(dimension, level), so_far, partners), chance.random()))
        so_far.add(feature(dimension, best))
        return best

    draw = build(choose)
    return draw if begun <= features(draw).keys() and is_valid(draw) else None


def _partners(missing: set[frozenset[Feature]]) -> dict[Feature, set[Feature]]:
    """What each feature has yet to be seen with; itself, where it has yet to be seen."""
    found: dict[Feature, set[Feature]] = {}
    for pair in missing:
        one, other = min(pair), max(pair)
        found.setdefault(one, set()).add(other)
        found.setdefault(other, set()).add(one)
    return found


def _gain(name: Feature, so_far: set[Feature], partners: dict[Feature, set[Feature]]) -> int:
    wanted = partners.get(name, set())
    return len(wanted & so_far) + 3 * (name in wanted)


@cache
def _is_choice(name: Feature) -> bool:
    return any(general(path) == name[0] and dimension.choice for path, dimension in known().items())


def _with_parents(begun: frozenset[Feature], chance: random.Random) -> Draw | None:
    """The levels to begin with: those of the features, and the choices under which they exist."""
    forced: Draw = {}
    for path, level in sorted(begun):
        if path in {general(name) for name in forced}:
            continue
        places = [d for d in known().values() if general(d.path) == path]
        places = [(d, value) for d in places for value in d.levels if feature(d, value) == (path, level)]
        places = [place for place in places if _reachable(place[0], forced)]
        if not places:
            return None
        dimension, value = chance.choice(places)
        forced[dimension.path] = value
        while dimension.needs:
            forced[dimension.needs[0]] = dimension.needs[1]
            dimension = known()[dimension.needs[0]]
    return forced


def _reachable(dimension: Dimension, forced: Draw) -> bool:
    while dimension.needs:
        if forced.get(dimension.needs[0], dimension.needs[1]) != dimension.needs[1]:
            return False
        dimension = known()[dimension.needs[0]]
    return True
