"""The last collectives that each rank has called: which rank's does not fit the others'?"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..rank.collectives import AT, KEPT, SLOT


@dataclass(frozen=True, kw_only=True)
class Call:
    """One collective of the default group."""

    number: int
    """From 1."""
    what: str
    """all_reduce of float32 [4]"""
    file: str
    line: int
    function: str


def read(page: bytes) -> list[Call]:
    """The newest calls, oldest first."""
    found = []
    for place in range(AT, AT + SLOT * KEPT, SLOT):
        parts = page[place : place + SLOT].rstrip(b"\0").decode(errors="replace").split("\n")
        with suppress(ValueError):  # nothing yet, or it is being written
            number, what, function, line, file = parts
            found.append(Call(number=int(number), what=what, file=file, line=int(line), function=function))
    return sorted(found, key=lambda call: call.number)


def first_difference(calls: Mapping[int, Sequence[Call]]) -> dict[int, Call] | None:
    """Of each rank the first call that is not the same everywhere; None where there is none that all have made."""
    numbered = {rank: {call.number: call for call in of_rank} for rank, of_rank in calls.items()}
    if len(numbered) < 2:
        return None
    for number in sorted(set.intersection(*(set(of_rank) for of_rank in numbered.values()))):
        here = {rank: of_rank[number] for rank, of_rank in numbered.items()}
        if len({call.what for call in here.values()}) > 1:
            return here
    return None


def odd_one(calls: Mapping[int, Call]) -> tuple[int, str] | None:
    """The only rank that differs, and what the others have called; None where sides are even."""
    counted = Counter(call.what for call in calls.values()).most_common()
    if len(calls) < 3 or len(counted) != 2 or counted[1][1] != 1:
        return None
    rank = next(rank for rank, call in calls.items() if call.what == counted[1][0])
    return rank, counted[0][0]


def sides(calls: Mapping[int, Call]) -> Iterator[tuple[list[int], Call]]:
    """Ranks that have called the same, and from where one of them did."""
    found: dict[str, list[int]] = defaultdict(list)
    for rank in sorted(calls):
        found[calls[rank].what].append(rank)
    return ((ranks, calls[ranks[0]]) for ranks in found.values())
