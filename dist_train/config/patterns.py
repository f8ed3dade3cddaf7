"""Patterns on the names of parameters, such as `layer1.*`; a `*` crosses dots too. No torch here."""

import difflib
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from dist_train.config.problems import shown
from dist_train.errors import UserError

HEAD = re.compile(r"(fc|(aux_)?classifier|heads?(_dist)?|score|lm_head|cls|qa_outputs)\.")
"""How torchvision's, timm's and Hugging Face's models name what comes after the features: the classifier, or the head
of another task."""


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(key: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Raises UserError for the first pattern that none of the names matches; it says which names are near.

    Args:
        key: of the config, for the message.
    """
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        if any(name.startswith(f"{pattern}.") for name in names):
            hint = f"; all that is in it is {pattern}.*"
        else:
            near = difflib.get_close_matches(pattern[:200], names, n=3, cutoff=0.4) or sorted(names)[:3]
            hint = f"; there is {', '.join(near)}" if near else ""
        raise UserError(f"{key}: no name matches {shown(pattern)}{hint}")


def listed(names: Collection[str], most: int = 5) -> str:
    """`a, b, c and 4 more`."""
    first = sorted(names)[:most]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(first)}{more}"
