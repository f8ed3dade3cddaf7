"""Samples that cannot be read: what says so, what takes their place, and how many there may be."""

import errno
import math
from dataclasses import dataclass

from dist_train.config.problems import printable
from dist_train.data.failure import CapturedError
from dist_train.errors import ExitCode, UserError
from dist_train.randomness import key

TRIES = 16
"""Samples that are drawn in the place of a broken one. With half of the set broken, one in 65,536 finds none."""
_SHORT = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT}
"""What a process says that has run out of something: no fault of the sample's."""


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A sample that could not be read.

    Attributes:
        index: its place in the data set.
        instead: the place of the sample that was read instead; None where it was left out.
        reason: one line, which names it.
    """

    index: int
    instead: int | None
    reason: str


def is_of_a_sample(error: BaseException | None) -> bool:
    """Whether it may be a sample's fault: not that of the config, of the program's end, or of want of memory or
    descriptors, which another rank or another start might have."""
    while error is not None:
        is_wrong = isinstance(error, UserError) and error.code != ExitCode.DATA
        is_short = isinstance(error, OSError) and error.errno in _SHORT
        is_short |= isinstance(error, RuntimeError | OSError) and "allocate memory" in str(error)
        if is_wrong or is_short or isinstance(error, MemoryError) or not isinstance(error, Exception):
            return False
        error = error.__cause__
    return True


def drawn(seed: int, epoch: int, index: int, attempt: int, size: int) -> int:
    """The place, in a set of `size` samples, of the one that is tried for the broken sample `index`.

    It is read as at its own place of that epoch, with the augmentation that it has there: a batch is what it would be
    if the order of the samples had this one in it.
    """
    return key(seed, "substitute", epoch, index, attempt) % size


def most_broken(share: float, size: int) -> int:
    """How many of `size` samples may be broken, where `share` of them may: rounded up, but for the error of floats."""
    return math.ceil(round(share * size, 6))


def reason_of(error: Exception, name: str) -> str:
    """One line that names the sample."""
    text = printable(" ".join(CapturedError.of(error).message.split()), 300)
    return text if isinstance(error, UserError) else f"{name}: {type(error).__name__}: {text}"
