"""A data set for the trainer, one of whose samples gets a rank stuck, in the way that HANG_ACTION says."""

import os

import numpy as np
import torch
from torch.utils.data import Dataset

from dist_train.data.datasets import ImageSet
from tests.hangs import plain


class Stuck(Dataset):
    """Random points; after HANG_AFTER reads, the victim's next one does what HANG_ACTION says."""

    def __init__(self, split: str) -> None:
        self.split, self.classes, self.reads = split, ("a", "b"), 0

    def __len__(self) -> int:
        return 64 if self.split == "evaluation" else 4096

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        action, victim = os.environ["HANG_ACTION"], os.environ.get("RANK") == os.environ["HANG_VICTIM"]
        if self.split == "train" and self.reads == 120 and victim and action in plain.ACTS:
            (plain.Path(os.environ["HANG_FOLDER"]) / "ready").touch()
            plain.ACTS[action]()
        if self.split == "train" and victim and action == "slow":
            plain.time.sleep(0.005)
        if self.split == "evaluation" and action == "evaluate":
            plain.time.sleep(float(os.environ["EVALUATION_SECONDS"]) / 64)
        return torch.full((4,), float(index % 2)), index % 2


class StuckImages(ImageSet):
    """The same, read a batch at a time, by a thread."""

    shape, by_row, threads, classes = (4,), True, True, ("a", "b")

    def __init__(self, split: str) -> None:
        self._points = Stuck(split)

    def __len__(self) -> int:
        return len(self._points)

    def __getitems__(self, indices: np.ndarray, crop=None) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = zip(*(self._points[index] for index in indices.tolist()), strict=True)
        return torch.stack(inputs), torch.tensor(targets)
