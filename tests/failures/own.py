"""A dataset and a model of a user's, one of which fails on one rank; for a training by `dist-train train`."""

import ctypes
import itertools
import os
import signal
import sys

import torch
from torch import Tensor, nn

CALLS = itertools.count(1)
"""Of forward; no attribute of the model, which may have none that changes. The first few are before the first step."""
RANK = int(os.environ.get("RANK", "0"))


def look_up(labels: list, index: int) -> object:
    return labels[index]


def run_out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


ACTS = {
    "raise": lambda: look_up([1, 2, 3], 5),
    "exit-0": lambda: sys.exit(0),
    "os-exit-0": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "gpu-memory": run_out_of_gpu_memory,
}


class Points(torch.utils.data.Dataset):
    def __init__(self, split: str, act: str = "", rank: int = -1) -> None:
        self.classes, self.shape, self.split = ("left", "right"), (2,), split
        self._act = ACTS[act] if act and rank == RANK else None

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._act and self.split == "train" and index % 32 == 5:
            self._act()
        return torch.full((2,), float(index % 2)), index % 2


class Net(nn.Module):
    def __init__(self, act: str = "", rank: int = -1) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self._act = ACTS[act] if act and rank == RANK else None

    def forward(self, points: Tensor) -> Tensor:
        if self._act and next(CALLS) == 12:
            self._act()
        return self.layer(points)
