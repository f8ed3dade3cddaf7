"""The user's own data sets, `package.module:Thing`.

`Thing(split="train", **args)` and `Thing(split="evaluation", **args)` are called, and `Thing(split="test", **args)`
where `Thing.has_test` is true. What comes back has `__len__` and `__getitem__`, which returns (input, target): tensors,
numbers, text, or dicts and tuples of them, of one shape for all samples. Images are uint8 [C, H, W] to go through
`augment`. A class derived from ImageSet reads a batch at a time. Optional attributes of the training set: `classes`,
the names of the classes; `shape`, of an input (else the first sample is looked at); `outputs`, how many numbers a
target has (the same); `vocabulary`, how many tokens there are, and `token_bytes`, how many bytes of text each stands
for; `in_memory`, true where reading is so cheap that loading processes would only be in the way; `fingerprint()`, of
any split, which a resume compares.

Random draws from Python's, NumPy's and torch's global generators inside `__getitem__` depend on (seed, epoch, index)
alone, since those are set for every sample.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.imports import construct, resolve_import
from dist_train.config.schema import CustomData
from dist_train.data.broken import TRIES, is_of_a_sample
from dist_train.data.datasets.base import ImageSet, Splits
from dist_train.data.failure import failures, noted
from dist_train.errors import DataError, UserError
from dist_train.randomness import key, seeded


def build(config: CustomData, local_rank0_first: Any, *, trains: bool = True) -> Splits:
    """Without `trains` there is no training split: the one that is evaluated stands in its place."""
    thing = resolve_import(config.name, "data")
    splits = [*["train"] * trains, "evaluation", *(["test"] if getattr(thing, "has_test", False) else [])]
    made = {split: construct(config, "data", offered={}, split=split) for split in splits}
    for split, dataset in made.items():
        _check(config.name, split, dataset)
    train = made.setdefault("train", made["evaluation"])
    shape, outputs = shape_of(train, config.on_error)
    known: dict[str, Any] = {name: getattr(train, name, None) for name in ("vocabulary", "token_bytes")}
    return Splits(**made, **known, classes=_classes_of(config.name, train), shape=shape, outputs=outputs)


def _classes_of(name: str, dataset: Any) -> tuple[str, ...] | None:
    classes = getattr(dataset, "classes", None)
    if classes is None:
        return None
    if not isinstance(classes, Iterable):
        raise DataError(
            f"{name}: `classes` is {classes!r}, and must hold the names of the classes, in the order of the targets"
        )
    return tuple(str(one) for one in classes)


def _check(name: str, split: str, dataset: Any) -> None:
    read = "__getitems__" if isinstance(dataset, ImageSet) else "__getitem__"
    missing = [method for method in ("__len__", read) if not hasattr(dataset, method)]
    if missing:
        raise UserError(f"{name} for split {split} has no {' and no '.join(missing)}: a map-style data set is needed")
    if len(dataset) == 0:
        raise DataError(f"{name} for split {split} is empty")


def shape_of(dataset: Any, on_error: str) -> tuple[tuple[int, ...] | None, int | None]:
    """Of an input, and how many numbers a target has that is of floats: of the first sample that can be read, where
    `on_error` allows another than the very first."""
    outputs = getattr(dataset, "outputs", None)
    if hasattr(dataset, "shape") and (outputs is not None or getattr(dataset, "classes", None) is not None):
        return tuple(dataset.shape), outputs
    with seeded(key(0, "shape")), failures():
        sample = _first_sample(dataset, 1 if on_error == "stop" else min(TRIES, len(dataset)))
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        return getattr(dataset, "shape", None), outputs
    shape = getattr(dataset, "shape", getattr(sample[0], "shape", None))
    is_number = isinstance(sample[1], float | np.ndarray | Tensor) and not is_whole(sample[1])
    outputs = int(np.prod(np.shape(sample[1]))) if outputs is None and is_number else outputs
    return None if shape is None else tuple(shape), outputs


def is_whole(target: Any) -> bool:
    """Whether it holds whole numbers, such as those of classes."""
    return not isinstance(target, float) and not torch.as_tensor(target).is_floating_point()


def _first_sample(dataset: Any, tries: int) -> Any:
    for index in range(tries):
        try:
            with noted("reading", [index], dataset):
                return _sample(dataset, index)
        except Exception as error:
            if index == tries - 1 or not is_of_a_sample(error):
                raise
    return None


def _sample(dataset: Any, index: int) -> Any:
    if not isinstance(dataset, ImageSet):
        return dataset[index]
    return tuple(part[0] if isinstance(part, Tensor) else None for part in dataset.__getitems__(np.array([index])))
