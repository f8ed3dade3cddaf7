"""scikit-learn's 442 patients, for configs/regression.yaml: how far did a diabetes go in a year?"""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

SCALE = 100.0
"""The measure is between 25 and 346; a model learns faster from numbers about one."""


class Diabetes(torch.utils.data.TensorDataset):
    """(ten measurements, float32 [10]; the measure of progress, in hundreds, float32 []). Each fifth patient is held
    out."""

    in_memory = True

    def __init__(self, split: str) -> None:
        inputs, targets = (torch.from_numpy(part).float() for part in load_diabetes(return_X_y=True))
        held_out = torch.arange(len(targets)) % 5 == 0
        rows = held_out if split == "evaluation" else ~held_out
        super().__init__(inputs[rows] / inputs.std(), targets[rows] / SCALE)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return super().__getitem__(index)
