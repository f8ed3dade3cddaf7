"""A model, a dataset and a task of one's own, for configs/own_components.yaml: points of intertwined spirals.

A config names them `examples.spirals:Spirals` and so on; nothing else knows of them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_train.tasks.base import Sums, Task, counted


class Spirals(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Points of as many spirals as there are classes, each a function of its index alone.

    Args:
        split: "train" or "evaluation", given by the system; their points are different ones.
        arms: the number of spirals, one class each.
        turns: how often each winds around the middle.
        noise: standard deviation of a point's distance from its spiral; the outer radius is 1.
        size, eval_size: points of the two splits.
    """

    def __init__(
        self,
        split: str,
        arms: int = 3,
        turns: float = 1.0,
        noise: float = 0.02,
        size: int = 3_000,
        eval_size: int = 1_000,
    ) -> None:
        self.classes = tuple(f"arm {arm}" for arm in range(arms))
        self._split_number = ("train", "evaluation").index(split)
        self._size = size if split == "train" else eval_size
        self._turns, self._noise = turns, noise

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The point, float32 [2], and its class."""
        draws = np.random.default_rng([self._split_number, index])
        arm = index % len(self.classes)
        radius = np.sqrt(draws.uniform(0.01, 1.0))  # the root spreads them evenly along the arm
        angle = 2 * np.pi * (self._turns * radius + arm / len(self.classes))
        point = radius * np.array([np.cos(angle), np.sin(angle)]) + draws.normal(scale=self._noise, size=2)
        return torch.from_numpy(point.astype(np.float32)), arm


class SpiralNet(nn.Module):
    """[m, 2] -> [m, classes]. Because it has a parameter of that name, it is given the number of classes."""

    def __init__(self, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, classes)
        )

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)


class LargeMargin(Task):
    """Classes told apart by the hinge loss of Crammer and Singer (2001): every other class's score should be smaller
    than the true one's by at least `margin`.
    """

    counts_every_sample = True  # so the loss can be normalised without asking the other ranks

    def __init__(self, margin: float = 1.0) -> None:
        self._margin = margin

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """The sum over the microbatch, and of how many."""
        return F.multi_margin_loss(output, target, margin=self._margin, reduction="sum"), len(target)

    def statistics(self, output: Tensor, target: Tensor) -> Sums:
        """Sums over a batch: the system adds them up over batches and ranks."""
        true = output.gather(1, target[:, None]).squeeze(1)
        best_other = output.scatter(1, target[:, None], -torch.inf).amax(dim=1)
        return {
            **super().statistics(output, target),  # loss and count
            "right": (true > best_other).sum(),
            "margin": (true - best_other).double().sum(),
        }

    def metrics(self, sums: Sums) -> dict[str, Any]:
        """The figures, from the sums over the whole split."""
        count = counted(sums)
        return {
            **super().metrics(sums),  # loss
            "accuracy": sums["right"].item() / count,
            "mean_margin": sums["margin"].item() / count,
        }
