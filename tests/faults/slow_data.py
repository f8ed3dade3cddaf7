"""Samples that take their time, so that something can happen to a step or to an evaluation while it lasts."""

import os
import time
from pathlib import Path
from typing import Any

import torch

SIGNS = "DIST_TRAIN_FAULTS_SIGNS"
"""The folder where `evaluating` appears when the evaluation data set is read."""


class Slow:
    """60 points of two classes; an item takes `seconds`, and tells when it is read for an evaluation."""

    def __init__(self, split: str = "train", seconds: float = 0.0) -> None:
        self._split, self._seconds = split, seconds
        self.classes = ["a", "b"]
        self._points = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(len(split)))

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int) -> Any:
        if self._split != "train":
            (Path(os.environ[SIGNS]) / "evaluating").touch()
        time.sleep(self._seconds)
        return self._points[index], index % 2
