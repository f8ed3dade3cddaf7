"""Figures, durations and times as people read them, and which figures are worth showing them."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dist_train.config.metrics import SHARES

Row = dict[str, Any]
"""A row of metrics.jsonl, or what it is made of: the user's figures by name, beside keys of ours."""
POSITION = ("step", "epoch", "samples_seen")
"""The keys of a row that say where it belongs; every other number in it is a figure."""


def figure(name: str, value: Any) -> str:
    """A figure as people read it: shares in percent."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if name in SHARES:
        return f"{100 * value:.1f} %"
    return number(value)


def number(value: float) -> str:
    """Three significant digits; metrics.jsonl has all of them."""
    return f"{value:,.0f}" if isinstance(value, int) or 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def telling(row: Mapping[str, Any], classes: int | None = None) -> dict[str, int | float]:
    """The figures of an evaluation that say something. The best five of five classes always hold the right one, and
    micro averages are the accuracy where each sample has one class.

    Args:
        classes: how many there are; without it, as many as the row has in `per_class`.
    """
    per_class, accuracy = row.get("per_class"), row.get("accuracy")
    if classes is None and isinstance(per_class, dict):
        classes = max((len(column) for column in per_class.values() if isinstance(column, list)), default=None)
    found = {}
    for name, value in row.items():
        if name in POSITION or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        is_certain = name == "top5" and classes is not None and classes <= 5
        is_twice = name.endswith("_micro") and isinstance(accuracy, float) and math.isclose(value, accuracy)
        if not is_certain and not is_twice:
            found[name] = value
    return found


def clock(value: float) -> str:
    """0:07, 12:34, 1:02:03."""
    whole = round(value)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def label(name: str) -> str:
    return SHARES.get(name, name.replace("_", " "))


def change(name: str, value: float, half: float = 0.0, *, signed: bool = True) -> str:
    """A difference of figures, as fine as it is known: to the second digit of `half` of its interval. Shares are in
    percentage points, without the word."""
    scale = 100 if name in SHARES else 1
    fine = 1 - math.floor(math.log10(scale * half)) if half > 0 else 1
    digits = min(9, max(fine, 1 if name in SHARES else 0))
    return f"{scale * value:{'+' if signed else ''}.{digits}f}"


def seconds(value: float) -> str:
    """0.3 s, 12 s, 1 m 38 s, 2 h 5 m, 3 d 4 h."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def size(count: float) -> str:
    """Bytes in decimal units: `205 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def holding_in_words(found: Sequence[Mapping[str, Any]]) -> str:
    """`3,670 images, 120 are there: 18 MB of about 550 MB, 66 GB free in /home/me/.cache/dist-train/images`, of what
    data/cache/survey.py says."""
    images, there, taken, whole = (
        sum(one[name] for one in found) for name in ("images", "there", "bytes", "estimated_bytes")
    )
    have = "all" if there == images else f"{there:,}" if there else "none"
    free = f"{size(found[0]['free_bytes'])} free in {found[0]['folder'].rpartition('/')[0]}"
    return f"{images:,} images, {have} are there: {size(taken)} of about {size(whole)}, {free}"


def date(unix: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix)) if unix else ""
