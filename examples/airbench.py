"""The network of configs/cifar10_94.yaml, after airbench94 (Jordan, 94 % on CIFAR-10 in 3.29 seconds on a single GPU,
2024, arXiv:2404.00498, section 3.1; its code is MIT-licensed): narrow, with a first layer that is not trained."""

import math

import torch
from torch import Tensor, nn

CHANNELS = ((0.985, 0.90, 0.79), (0.90, 0.985, 0.905), (0.79, 0.905, 0.985))
"""How red, green and blue vary together in CIFAR-10's training images, normalised by the config's mean and std."""
NEIGHBOURS = (1.0, 0.92, 0.865)
"""How much of that is left between a pixel and itself, the one beside it, the one across the corner. Both were measured
on 5,000 images drawn at random."""


class Net(nn.Module):
    """[m, 3, 32, 32] -> [m, classes].

    A 2×2 convolution that whitens, three blocks of two 3×3 convolutions, each block halved in size, a maximum over what
    is left, one linear layer. 2.0 M parameters.

    Args:
        classes: given by the system.
        widths: channels of the blocks.
        whiten: whether the first layer is fixed to what whitens 2×2 patches of images such as CIFAR-10's; else it is
            trained from a random beginning.
        scale: what the scores are multiplied by.
    """

    def __init__(
        self, classes: int, widths: tuple[int, ...] = (64, 256, 256), whiten: bool = True, scale: float = 1 / 9
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 2)
        if whiten:
            self.first.weight.data.copy_(whitening())
            self.first.weight.requires_grad = False
            nn.init.zeros_(self.first.bias)
        inputs = (24, *widths)
        self.blocks = nn.Sequential(*(_block(inputs[i], width) for i, width in enumerate(widths)))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(nn.functional.gelu(self.first(images)))
        return self.head(x.amax((2, 3))) * self.scale


def _block(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        _conv(inputs, width), nn.MaxPool2d(2), _norm(width), nn.GELU(), _conv(width, width), _norm(width), nn.GELU()
    )


def _conv(inputs: int, width: int) -> nn.Conv2d:
    """Its first filters pass their inputs on as they are (section 3.4)."""
    conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


def _norm(width: int) -> nn.BatchNorm2d:
    """Statistics that forget soon, since the training is short; only a bias is trained."""
    norm = nn.BatchNorm2d(width, momentum=0.4)
    norm.weight.requires_grad = False
    return norm


def whitening(eps: float = 5e-4) -> Tensor:
    """Filters [24, 3, 2, 2]: the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue,
    and the same with the other sign (section 3.2)."""
    apart = [[abs(y - v) + abs(x - u) for v in (0, 1) for u in (0, 1)] for y in (0, 1) for x in (0, 1)]
    space = torch.tensor([[NEIGHBOURS[steps] for steps in row] for row in apart], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(torch.kron(torch.tensor(CHANNELS, dtype=torch.float64), space))
    filters = (vectors / (values.clamp(min=0) + eps).sqrt()).T.reshape(12, 3, 2, 2) / math.sqrt(2)
    return torch.cat([filters, -filters]).float()
