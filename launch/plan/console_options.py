"""What --ranks and --log-size mean, and torchrun's --tee, --redirects and --local-ranks-filter. Pure."""

import re

from dist_train.config.ranges import parse_ranks
from dist_train.errors import UserError

from ..relay.request import Shown, Streams
from .flags import LOG_SIZE, Flags

_UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}
SMALLEST_LOG = 1_000


def parse_shown(flags: Flags, world_size: int) -> Shown:
    """Which ranks and streams the console shows.

    Raises:
        UserError: when one of the flags is wrong, or --ranks and one of torchrun's are given.
    """
    tee, redirects, chosen = flags.tee, flags.redirects, flags.local_ranks_filter
    theirs = {f"--tee {tee}": tee != "0", f"-r {redirects}": redirects != "0", f"--local-ranks-filter {chosen}": chosen}
    if flags.ranks is not None and (given := [words for words, is_given in theirs.items() if is_given]):
        raise UserError(f"--ranks {flags.ranks} and {given[0]} both say which ranks are shown: give one of them")
    return Shown(
        ranks=parse_ranks(flags.ranks, world_size),
        tee=parse_streams("--tee", tee),
        redirects=parse_streams("--redirects", redirects),
        local_ranks=parse_filter(chosen) if chosen else None,
        prefix=flags.log_line_prefix_template or "",
    )


def parse_filter(text: str) -> list[int]:
    """torchrun's --local-ranks-filter, `0,1`.

    Raises:
        UserError: when the text is something else.
    """
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", text):
        raise UserError(f"--local-ranks-filter {text}: give local ranks such as 0,1")
    return [int(item) for item in text.split(",")]


def parse_streams(flag: str, text: str) -> Streams:
    """torchrun's --tee and --redirects, `3` or `0:3,1:2`: 1 is stdout, 2 stderr, 3 both.

    Raises:
        UserError: when it is neither.
    """
    if re.fullmatch(r"[0-3]", text):
        return Streams(all=int(text))
    if not re.fullmatch(r"\d{1,9}:[0-3](,\d{1,9}:[0-3])*", text):
        raise UserError(f"{flag} {text}: 0 to 3 for all ranks, or LOCAL_RANK:3,…; --ranks 0,3 is simpler")
    chosen = (item.split(":") for item in text.split(","))
    return Streams(local={str(int(local)): int(streams) for local, streams in chosen})


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
