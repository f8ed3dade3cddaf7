"""Samples that take their time, so that something can happen to a step or to an evaluation while it lasts."""

import os
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


class LongItem(Slow):
    """The same points. One item takes long, in a split; or the data set itself does.

    Args:
        split_of_it: `train`, `evaluation` or `init`.
    """

    def __init__(self, sign: str, split: str = "train", split_of_it: str = "", long: float = 30.0) -> None:
        super().__init__(sign, split, 0.02)
        self._long = long if split_of_it == split else 0.0
        if split_of_it == "init":
            time.sleep(long)

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            time.sleep(self._long)
        return super().__getitem__(index)


class LongStep(torch.optim.SGD):
    """SGD one of whose steps takes long.

    Args:
        step_of_it: counted from 1.
        rank: that it takes long on; -1 for all.
    """

    def __init__(self, params: Any, lr: float, step_of_it: int = 0, rank: int = -1, long: float = 30.0) -> None:
        super().__init__(params, lr=lr)
        self._left, self._long = step_of_it, long if rank in (-1, int(os.environ["RANK"])) else 0.0

    def step(self, closure: Any = None) -> Any:
        self._left -= 1
        if self._left == 0:
            time.sleep(self._long)
        return super().step(closure)
