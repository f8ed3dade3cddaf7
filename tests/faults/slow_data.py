"""Samples that take their time, so that something can happen to a step or to an evaluation while it lasts."""

import time
from pathlib import Path
from typing import Any

import torch


class Slow:
    """60 points of two classes.

    Args:
        seconds: that an item takes.
        sign: a file that appears when an item is read for an evaluation.
    """

    def __init__(self, sign: str, split: str = "train", seconds: float = 0.0) -> None:
        self._split, self._seconds, self._sign = split, seconds, Path(sign)
        self.classes = ["a", "b"]
        self._points = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(len(split)))

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int) -> Any:
        if self._split != "train":
            self._sign.touch()
        time.sleep(self._seconds)
        return self._points[index], index % 2
