"""Ranks and steps as they are written on a command line."""

import re

from dist_train.errors import UserError


def parse_ranks(text: str | None, world_size: int, flag: str = "--ranks") -> list[int] | None:
    """`0,3-5` as ranks, `all` as all of them; None where nothing was given.

    Raises:
        UserError: when it names none, or one that there is not.
    """
    if text is None:
        return None
    if text.strip() == "all":
        return list(range(world_size))
    chosen: set[int] = set()
    for item in text.split(","):
        span = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", item)
        if span is None:
            raise UserError(f"{flag} {text}: give ranks such as 0,3 or 0-3, or all")
        low, high = int(span[1]), int(span[2] or span[1])
        if not low <= high < world_size:
            raise UserError(f"{flag} {text}: the ranks are 0 to {world_size - 1}")
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def parse_steps(text: str, last: int | None = None, flag: str = "--profile") -> range:
    """`20-25`, or `20` alone, as steps, which are counted from 1.

    Args:
        last: the last step of the training, where it is known.

    Raises:
        UserError: when it is none, or the training does not come so far.
    """
    span = re.fullmatch(r"\s*(\d{1,15})(?:-(\d{1,15}))?\s*", text)
    if span is None:
        raise UserError(f"{flag} {text}: give steps such as 20-25, or one such as 20")
    low, high = int(span[1]), int(span[2] or span[1])
    if not 1 <= low <= high:
        raise UserError(f"{flag} {text}: the first step is 1, and the last one given is not before the first")
    if last is not None and high > last:
        raise UserError(f"{flag} {text}: the training ends with step {last}")
    return range(low, high + 1)
