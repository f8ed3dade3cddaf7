"""What a draw names as a user's own: data sets, a model, a task, an optimizer. None of it is out of the ordinary."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dist_train.data.datasets.base import ImageSet, crop_each
from dist_train.tasks.base import Task, counted

_SIZES = {"train": 60, "evaluation": 19}


class Drawn:
    """uint8 [3, 8, 8] and one of four classes, with noise from every global generator."""

    classes = ("a", "b", "c", "d")

    def __init__(self, split):
        self._size = _SIZES[split]

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        noise = torch.randint(0, 40, (3, 8, 8)) + random.randrange(10) + int(np.random.randint(10))
        return (noise + 40 * (index % 4)).to(torch.uint8), index % 4


class Ready(ImageSet):
    """The same without noise, read a batch at a time."""

    shape = (3, 8, 8)
    classes = ("a", "b", "c", "d")

    def __init__(self, split):
        self._size = _SIZES[split]

    def __len__(self):
        return self._size

    def __getitems__(self, indices, crop=None):
        rows = torch.from_numpy(indices)
        images = (torch.arange(192).view(1, 3, 8, 8) * 7 + rows.view(-1, 1, 1, 1) * 31) % 256
        return crop_each(images.to(torch.uint8), crop), rows % 4


class Normed(nn.Module):
    """[m, C, H, W] -> [m, classes] by a block with LayerNorm, dropout and a gate."""

    def __init__(self, shape, classes):
        super().__init__()
        self.first = nn.Linear(shape[0] * shape[1] * shape[2], 16)
        self.block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.1))
        self.gate = nn.Parameter(torch.tensor(0.5))
        self.last = nn.Linear(16, classes)

    def forward(self, images):
        hidden = self.first(images.flatten(1))
        return self.last(hidden + self.gate * self.block(hidden))


class Weighed(Task):
    """Cross-entropy in which the class 0 counts nothing, so that valid targets are fewer than samples."""

    def loss(self, output, target):
        losses = F.cross_entropy(output.float(), target, reduction="none")
        valid = torch.ones_like(losses) if target.is_floating_point() else (target != 0).float()
        return (losses * valid).sum(), valid.sum().long()

    def statistics(self, output, target):
        valid = target != 0
        right = valid & (output.float().argmax(dim=1) == target)
        losses = F.cross_entropy(output.float(), target, reduction="none")
        return {"loss": (losses * valid).double().sum(), "count": valid.sum(), "right": right.sum()}

    def metrics(self, sums):
        count = counted(sums)
        return {"loss": sums["loss"].item() / count, "accuracy": sums["right"].item() / count}


class Lion(torch.optim.Optimizer):
    """The sign of a momentum (Chen et al., 2023)."""

    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["beta"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(state["momentum"].sign(), alpha=group["lr"] * 0.1)
