"""The data sets, by name."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dist_train.config.schema import DataConfig
from dist_train.data.datasets import (
    custom,
    digits,
    huggingface,
    image_folder,
    shards,
    synthetic,
    table,
    text,
    tokens,
    torchvision_sets,
)
from dist_train.data.datasets.base import ImageSet, Splits

LocalRank0First = Callable[[], AbstractContextManager[None]]
"""Makes a context whose block one rank of each node runs before the others do."""

__all__ = ["ImageSet", "Splits", "build"]

_BUILDERS: dict[str, Callable[[Any, LocalRank0First], Splits]] = {
    "digits": digits.build,
    "image_folder": image_folder.build,
    "cifar10": torchvision_sets.build,
    "cifar100": torchvision_sets.build,
    "mnist": torchvision_sets.build,
    "fashion_mnist": torchvision_sets.build,
    "synthetic": synthetic.build,
    "text": text.build,
    "tokens": tokens.build,
    "table": table.build,
    "shards": shards.build,
    "huggingface": huggingface.build,
}


def build(config: DataConfig, local_rank0_first: LocalRank0First = nullcontext) -> Splits:
    """Training, evaluation and test set of a run. Nothing is decoded; what must be downloaded is, by one rank a node.

    Raises:
        UserError: with ExitCode.DATA, when the data is not there or not as it should be.
    """
    return _BUILDERS.get(config.name, custom.build)(config, local_rank0_first)
