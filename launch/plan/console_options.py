"""What --ranks, --tee and --log-size mean. Pure."""

import re

from dist_train.errors import UserError
from launch.relay.request import Shown, Tee

LOG_SIZE = "256MB"
_UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}
SMALLEST_LOG = 1_000


def parse_shown(ranks: str | None, tee: str, world_size: int) -> Shown:
    """--ranks and --tee.

    Raises:
        UserError: when both are given, or one of them is wrong.
    """
    if ranks is not None and tee != "0":
        raise UserError(f"--ranks {ranks} and --tee {tee} both say which ranks are shown: give one of them")
    return Shown(ranks=parse_ranks(ranks, world_size), tee=parse_tee(tee))


def parse_ranks(text: str | None, world_size: int) -> list[int] | None:
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
            raise UserError(f"--ranks {text}: give ranks such as 0,3 or 0-3, or all")
        low, high = int(span[1]), int(span[2] or span[1])
        if not low <= high < world_size:
            raise UserError(f"--ranks {text}: the ranks are 0 to {world_size - 1}")
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def parse_tee(text: str) -> Tee:
    """torchrun's --tee, `3` or `0:3,1:2`.

    Raises:
        UserError: when it is neither.
    """
    if re.fullmatch(r"[0-3]", text):
        return Tee(all=text != "0")
    if not re.fullmatch(r"\d+:[0-3](,\d+:[0-3])*", text):
        raise UserError(f"--tee {text}: 0 to 3 for all ranks, or LOCAL_RANK:3,…; --ranks 0,3 is simpler")
    chosen = dict(item.split(":") for item in text.split(","))
    return Tee(local=[int(local) for local, streams in chosen.items() if streams != "0"])


def parse_size(text: str) -> int:
    """`256MB`, `64k`, `1.5G` or a number of bytes, as bytes.

    Raises:
        UserError: when it is none of these, or less than 1 kB.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)[bB]?", text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < SMALLEST_LOG:
        raise UserError(f"--log-size {text}: give a size such as {LOG_SIZE} or 1GB, 1kB at least")
    return size
