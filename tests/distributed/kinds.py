"""A data set and a model for every task, small enough to train in a second. Each sample is a function of its index."""

from types import SimpleNamespace

import torch
from torch import nn

from dist_train.tasks import Loss, Task

SIZES = {"train": 60, "evaluation": 19}


class Kind:
    """(uint8 [3, 8, 8] or tokens, target) of the kind that `task` takes."""

    def __init__(self, split, task):
        self._task, self._size, self._first = task, SIZES[split], {"train": 0, "evaluation": 60}[split]
        if task in ("multi_label", "segmentation", "classification"):
            self.classes = ("a", "b", "c")

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        place = index + self._first
        numbers = torch.arange(192).view(3, 8, 8)
        image = ((numbers * (place % 7 + 1) + 31 * place) % 251).to(torch.uint8)
        if self._task == "classification":
            return image, place % 3
        if self._task == "multi_label":
            return image, torch.tensor([place % 2, (place // 2) % 2, int(place % 5 == 0)])
        if self._task == "regression":
            return image, torch.tensor([image.float().mean() / 255, place % 3])
        if self._task == "segmentation":
            return image, torch.where(numbers[0] == place % 64, 255, image[0].long() // 84)
        tokens = (torch.arange(13) * (place % 5 + 1) + place) % 11
        if self._task == "language_model":
            return tokens[:-1], torch.where(tokens[1:] == 3, -100, tokens[1:])
        return {"input_ids": tokens, "labels": torch.where(tokens == 3, -100, tokens)}


class Net(nn.Module):
    """Of the shape that the task wants, with BatchNorm or dropout on the way."""

    def __init__(self, task):
        super().__init__()
        self._task = task
        if task in ("language_model", "huggingface"):
            self.body = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1))
            self.head = nn.Linear(8, 11)
        else:
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
            self.head = nn.Conv2d(6, 3, 1) if task == "segmentation" else nn.Linear(6, 2 if task == "regression" else 3)

    def forward(self, inputs=None, input_ids=None, labels=None):
        if self._task == "huggingface":  # as a model of transformers does
            logits = self.head(self.body(input_ids))
            loss = labels is not None and nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            return SimpleNamespace(loss=loss, logits=logits)
        hidden = self.body(inputs)
        if self._task in ("segmentation", "language_model"):
            return self.head(hidden)
        return self.head(hidden.mean((2, 3)))


class Whole(Task):
    """Has the whole batch: two forwards of one model, figures, and its own sums."""

    def step(self, model, batch):
        one, two = model(batch.inputs), model(batch.inputs.flip(3))
        rows = len(batch.indices)
        far = (one - two).square().sum()
        near = nn.functional.cross_entropy(one, batch.targets, reduction="sum")
        right = (one.argmax(1) == batch.targets).sum()
        return Loss(near + 0.1 * far, rows, {"far": (far.detach(), rows), "right": (right, rows)})
