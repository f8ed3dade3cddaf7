"""The data of the benchmarks: images of CIFAR's size in memory, the same bytes for both sides of a comparison."""

import numpy as np
from torch import Tensor
from torch.utils.data import TensorDataset

from dist_train.config.schema import Synthetic
from dist_train.data.datasets.base import TensorImages
from dist_train.data.datasets.synthetic import SyntheticImages

SIZE = {"train": 8192, "evaluation": 128}
CLASSES = 10


class Images(TensorImages):
    """For dist-train, as `data: {name: benchmarks.images:Images}`; read a batch at a time, as its own CIFAR-10 is."""

    def __init__(self, split: str) -> None:
        super().__init__(*made(split))
        self.classes = tuple(str(number) for number in range(CLASSES))


def tensor_dataset(split: str) -> TensorDataset:
    """For the plain script: torch's own way to have tensors in memory as a data set."""
    return TensorDataset(*made(split))


def made(split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and classes int64 [N]."""
    source = SyntheticImages(Synthetic(classes=CLASSES), 0, SIZE[split])
    return source.__getitems__(np.arange(SIZE[split]))
