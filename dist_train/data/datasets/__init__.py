"""The data sets, by name."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from dist_train.config.schema import CustomData, DataConfig, ImageFolder, RunConfig
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
from dist_train.data.datasets.alike import check_alike
from dist_train.data.datasets.base import ImageSet, Splits

LocalRank0First = Callable[[], AbstractContextManager[None]]
"""Makes a context whose block one rank of each node runs before the others do."""

__all__ = ["ImageSet", "Splits", "build", "build_all", "build_evaluated", "check_alike"]

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


def build_all(config: RunConfig, local_rank0_first: LocalRank0First = nullcontext) -> Splits:
    """The data of a run: `data`, and where `eval.data` is given the evaluation and test split of that.

    Raises:
        UserError: as `build` does, and (exit 13) where the one is not like the other.
    """
    splits = build(config.data, local_rank0_first)
    if config.eval.data is None:
        return splits
    other = build_evaluated(config.eval.data, splits.saved, local_rank0_first)
    notes = tuple(dict.fromkeys((*splits.notes, *(n for n in other.notes if not n.startswith("classes  ")))))
    return replace(splits, evaluation=other.evaluation, test=other.test, notes=notes)


def build_evaluated(config: DataConfig, trained: Mapping[str, Any], local_rank0_first: LocalRank0First) -> Splits:
    """Data that is evaluated alone.

    Args:
        trained: `Splits.saved` of the data of the training.

    Raises:
        UserError: as `build_all` does.
    """
    if isinstance(config, ImageFolder):
        splits = image_folder.build(config, local_rank0_first, trained["classes"])
    elif isinstance(config, CustomData):
        splits = custom.build(config, local_rank0_first, trains=False)
    else:
        splits = build(config, local_rank0_first)
    sizes = getattr(config, "pad", None) is None
    check_alike(f"{config.name} of eval.data", splits.saved, trained, sizes=sizes)
    known: dict[str, Any] = {name: trained.get(name) for name in ("classes", "outputs", "vocabulary")}
    return replace(splits, **known)


def build(config: DataConfig, local_rank0_first: LocalRank0First = nullcontext) -> Splits:
    """Training, evaluation and test set of a run. Nothing is decoded; what must be downloaded is, by one rank a node.

    Raises:
        UserError: with ExitCode.DATA, when the data is not there or not as it should be.
    """
    return _BUILDERS.get(config.name, custom.build)(config, local_rank0_first)
