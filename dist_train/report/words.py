"""Figures, durations and times as people read them."""

import math
import time
from typing import Any

SHARES = {"mean_average_precision": "mAP", "mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}
SHARES |= {"accuracy": "accuracy", "top5": "top-5", "precision": "precision", "recall": "recall", "f1": "F1"}
"""Metrics between 0 and 1 that are shown in percent, in this order."""


def shown(name: str, value: Any) -> str:
    """A figure as people read it: shares in percent."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if name in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


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


def date(unix: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix)) if unix else ""
