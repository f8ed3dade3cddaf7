"""A data set whose loading processes come from a fork server, as they do with CUDA."""

import torch
from torch.utils.data import Dataset

from dist_train.data import loader, workers

loader.start_method = lambda device: workers.start_method(torch.device("cuda"))


class Numbers(Dataset):
    classes = ("even", "odd")
    shape = (1, 4, 4)

    def __init__(self, split, size=2048):
        self._size = size

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        return torch.full((1, 4, 4), float(index % 2)), index % 2
