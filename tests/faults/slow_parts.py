"""Parts of a training that take their time, for what should say so (tests/faults/slowness.py)."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_train.data.datasets.decoded import DecodedImages
from dist_train.data.decode import decode_file


def is_victim(rank: int) -> bool:
    return int(os.environ["RANK"]) == rank


class FromSlowDisk(DecodedImages):
    """JPEG files, on a disk that needs `seconds` for each."""

    def __init__(self, split: str, root: str, seconds: float) -> None:
        super().__init__(32, None)
        self._files, self._seconds = sorted(map(str, Path(root, split).glob("*.jpg"))), seconds
        self.classes = ["a", "b"]

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> str:
        return self._files[index]

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(self._seconds)
        return decode_file(self._files[index]), index % 2


class Points:
    """512 pictures in memory; on one rank, each takes `seconds`, or that times the time that a step takes."""

    def __init__(self, split: str, victim: int = -1, seconds: float = 0.0, side: int = 16, eval_size: int = 16) -> None:
        self.classes, self._split, self._pause = ["a", "b"], split, Pause(seconds if is_victim(victim) else 0.0)
        self._eval_size = eval_size
        self._images = torch.randint(0, 255, (512, 3, side, side), generator=torch.Generator().manual_seed(3)).byte()

    def __len__(self) -> int:
        return 512 if self._split == "train" else self._eval_size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self._split == "train":
            self._pause()
        return self._images[index], index % 2


class Pause:
    """Sleeps when it is called: `seconds`, or where that is negative, this share of the time that has passed."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._before = seconds, time.monotonic()

    def __call__(self) -> None:
        if self._seconds:
            passed = min(time.monotonic() - self._before, 1.0)
            time.sleep(self._seconds if self._seconds > 0 else -self._seconds * passed)
            self._before = time.monotonic()


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: torch.Tensor, pause: Pause) -> torch.Tensor:
        context.pause = pause
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        context.pause()
        return gradient, None


class Net(nn.Module):
    """A few convolutions; on one rank forward or backward takes `seconds` more."""

    def __init__(self, victim: int = -1, where: str = "", seconds: float = 0.0, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(width, 2)
        self._where, self._pause = where if is_victim(victim) else "", Pause(seconds)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.first(images)
        if self.training and self._where == "forward":
            self._pause()
        if self.training and self._where == "backward":
            hidden = _Backward.apply(hidden, self._pause)
        return self.last(self.second(hidden).mean((2, 3)))


class Table(nn.Module):
    """Nothing to compute and `rows` times 64 numbers to exchange."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(rows, 64), nn.Linear(64, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.table(images[:, 0, 0, :8].long().abs()).mean(1))


class Sgd(torch.optim.SGD):
    """On one rank a step takes `seconds` more."""

    def __init__(self, params: Any, lr: float, victim: int = -1, seconds: float = 0.0) -> None:
        super().__init__(params, lr=lr)
        self._pause = Pause(seconds if is_victim(victim) else 0.0)

    def step(self, closure: Any = None) -> Any:
        self._pause()
        return super().step(closure)
