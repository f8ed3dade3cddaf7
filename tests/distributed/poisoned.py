"""A data set in which some samples are not finite: what a training meets in real life, and a config can name."""

import torch
from torch import nn
from torch.utils.data import Dataset


class Images(Dataset):
    """64 noisy images of 4 classes; the training samples named in `bad` hold a NaN."""

    def __init__(self, split: str, bad: list[int] = ()):  # type: ignore[assignment]
        draws = torch.Generator().manual_seed(7)
        self.classes = ("a", "b", "c", "d")
        self._targets = torch.arange(64) % 4
        self._images = torch.randn(64, 1, 8, 8, generator=draws) + self._targets.view(-1, 1, 1, 1)
        if split == "train":
            self._images[list(bad), 0, 3, 3] = float("nan")

    def __len__(self):
        return len(self._targets)

    def __getitem__(self, index):
        return self._images[index], int(self._targets[index])


class Masked(nn.Module):
    """A net with a mask of infinities among its buffers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 4)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

    def forward(self, images):
        return self.layer(images.flatten(1))
