"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, inside the package."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.schema import Digits
from dist_train.data.datasets.base import Splits, TensorImages, held_out
from dist_train.errors import UserError


def build(config: Digits, local_rank0_first: Any) -> Splits:
    pixels, targets = _table()
    grey = pixels.view(-1, 1, 8, 8)  # float64, 0 to 16
    images = (grey * (255 / 16)).round().to(torch.uint8)
    classes = tuple("0123456789")
    parts = held_out(config, classes, targets)
    train, evaluation = (TensorImages(images[rows], targets[rows]) for rows in (parts.kept, parts.held))
    return Splits(train=train, evaluation=evaluation, classes=classes, shape=train.shape, notes=parts.notes)


def _table() -> tuple[Tensor, Tensor]:
    """Pixels [1797, 64] in float64, and classes [1797] in int64, from the file in the package: `sklearn.datasets` would
    import SciPy first, which takes longer than everything else that this data set needs.

    Raises:
        UserError: without scikit-learn, or where it has no such file.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("data.name digits needs scikit-learn, pip install 'dist-train[demo]'")
    file = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    try:
        with gzip.open(file, "rt") as lines:
            rows = torch.from_numpy(np.loadtxt(lines, delimiter=","))
    except OSError as error:
        raise UserError(f"data.name digits is read from a file of scikit-learn's: {error}") from error
    return rows[:, :-1], rows[:, -1].to(torch.int64)
