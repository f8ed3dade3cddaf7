"""What is said of the classes before a training: how many samples each has, and which may be a misspelt other one."""

import re
from collections.abc import Iterator, Sequence

from dist_train.config.problems import printable

_LISTED = 10
"""Classes that are named; of more, the smallest and the largest are."""
_FEWER = 4
"""A class is taken for a misspelt one only if the other has so many times its samples."""
_WORD = re.compile(r"[^\W\d_]{4,}")
"""Where a slip is looked for: not in numbers, nor in short words such as the ends of `grade_ii` and `grade_iii`."""


def class_lines(classes: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    """Lines for the user: `classes  2: heron 60, stork 58`, and one for each class that may be another's slip.

    Args:
        counts: training samples of each class, those included that are held out of it.
    """
    named = [f"{printable(name)} {count:,}" for name, count in zip(classes, counts, strict=True)]
    if len(named) > _LISTED:
        few, many = (named[counts.index(pick(counts))] for pick in (min, max))
        named = [f"{few} (the fewest) … {many} (the most)"]
    yield f"classes  {len(classes):,}: {', '.join(named)}"
    spelt: dict[str, int] = {}
    for number in sorted(range(len(classes)), key=lambda number: -counts[number]):
        forms = _forms(classes[number])
        other = next((spelt[form] for form in forms if form in spelt), None)
        if other is not None and 0 < _FEWER * counts[number] <= counts[other]:
            small, large = (f"{printable(classes[one])} ({counts[one]:,})" for one in (number, other))
            yield f"! {small} looks like {large}: is it the same class, misspelt?"
        for form in forms:
            spelt.setdefault(form, number)


def _forms(name: str) -> list[str]:
    """A name, and it without each one of its letters: two names that differ in a letter, or in the place of one, share
    one of these."""
    plain = re.sub(r"[\W_]+", " ", name.casefold())
    return [plain, *(plain[:at] + plain[at + 1 :] for word in _WORD.finditer(plain) for at in range(*word.span()))]
