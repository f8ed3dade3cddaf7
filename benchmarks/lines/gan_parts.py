"""What the three GANs share: the points, the generator and the discriminator. Not counted."""

import torch
from torch import nn

NOISE = 8


class Ring(torch.utils.data.Dataset):
    """Points near a circle, float32 [2]."""

    def __len__(self):
        return 500

    def __getitem__(self, index):
        angle = torch.tensor(index * 0.0628)
        return torch.stack([angle.cos(), angle.sin()])


def networks():
    generator = nn.Sequential(nn.Linear(NOISE, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    discriminator = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    return generator, discriminator
