"""Every refusal that a draw may meet, with its reason. What is refused and not here fails."""

import re

from tests.exactness.lives import Ended

REFUSALS: tuple[tuple[int, str, str], ...] = (
    (2, r"model\.sync_batchnorm is for GPUs; torch has none for a CPU: leave it out", "torch has none for a CPU"),
    (2, r"distributed\.backend is nccl, and torch sees no GPU here: use gloo or auto, .*", "there is no GPU"),
)
"""(exit code, the message as a regular expression, the reason)."""


def reason_for(ended: Ended) -> str | None:
    """The row of a refusal: its reason; None where there is none, or the message is not one line."""
    for code, pattern, reason in REFUSALS:
        if ended.code == code and re.fullmatch(pattern, ended.said):
            return reason
    return None
