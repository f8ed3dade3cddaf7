"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, inside the package."""

from typing import Any

import torch

from dist_train.config.errors import UserError
from dist_train.config.schema import Digits
from dist_train.data.datasets.base import Splits, TensorImages, held_out


def build(config: Digits, first_per_node: Any) -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"data.name digits needs scikit-learn, pip install 'dist-train[demo]': {error}") from error
    bunch = load_digits()
    grey = torch.from_numpy(bunch.images)[:, None]  # float64, 0 to 16
    images = (grey * (255 / 16)).round().to(torch.uint8)
    targets = torch.from_numpy(bunch.target).to(torch.int64)
    train, evaluation = (
        TensorImages(images[rows], targets[rows])
        for rows in held_out(len(targets), config.eval_fraction, config.split_seed)
    )
    return Splits(
        train=train, evaluation=evaluation, classes=tuple(str(name) for name in bunch.target_names), shape=train.shape
    )
