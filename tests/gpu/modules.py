"""Models that go wrong on the device that they are on."""

import time

import torch
from torch import nn


class _After(nn.Module):
    """[m, 1, 4, 4] -> [m, 2]; from the given step on in training it does what its kind does."""

    left: torch.Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        self.last = nn.Linear(16, 2)
        self.register_buffer("left", torch.tensor(number))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.left.sub_(1)
            if self.left.item() < 0:
                self.go_wrong(inputs)
        return self.last(inputs.flatten(1))

    def go_wrong(self, inputs: torch.Tensor) -> None:
        raise NotImplementedError


class Sleeps(_After):
    """A kernel that does not end, for an hour at least; the host goes on, as it does beside a collective that hangs."""

    def go_wrong(self, inputs: torch.Tensor) -> None:
        if inputs.is_cuda:
            torch.cuda._sleep(10**13)
        else:
            time.sleep(3600)


class Greedy(_After):
    """Memory that no device has."""

    def go_wrong(self, inputs: torch.Tensor) -> None:
        torch.empty(1 << 50, device=inputs.device)
