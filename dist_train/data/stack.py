"""Samples, stacked to a microbatch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from dist_train.errors import DataError, UserCodeError, UserError

_PAIR = ("input", "target")


def check_sample(sample: Any, name: str) -> None:
    """Raises UserError unless it is a pair, or a mapping, which is inputs alone."""
    if not _is_pair(sample) and not isinstance(sample, Mapping):
        raise UserCodeError(f"{name} is a {_kind(sample)}, and must be a pair (input, target), or a dict of inputs")


def stacked(
    samples: list[Any], indices: np.ndarray, dataset: Any, pad: float | Mapping[str, float] | None
) -> tuple[Any, Any]:
    """Inputs and targets of a microbatch, by the data set's own `collate` where it has one, else as torch's DataLoader
    stacks them. Of samples that are mappings the targets are None.

    Args:
        pad: what samples of different sizes are filled up with; None where they have one size.
    """
    if pad is not None:
        samples = padded(samples, pad)
    own = getattr(dataset, "collate", None)
    try:
        batch = collate(samples, collate_fn_map=_COLLATE) if own is None else own(samples)
    except _Ragged as error:
        (one, first), (two, second) = error.args
        raise UserCodeError(
            f"sample {indices[one]:,} of {type(dataset).__name__} has a tensor of the shape {first}, and sample "
            f"{indices[two]:,} one of {second}: give them one size, say `pad` beside args, or write a method `collate`"
        ) from None
    if isinstance(batch, Mapping):
        return batch, None
    if not _is_pair(batch):
        raise UserCodeError(
            f"{type(dataset).__name__}.collate gave a {_kind(batch)}, and must give a pair (inputs, targets), or a "
            "dict of inputs"
        )
    return batch[0], batch[1]


def _stack(tensors: list[Tensor], *, collate_fn_map: Any) -> Tensor:
    """torch's own function uses other memory in a loading process, and fails with another message there."""
    for row, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise _Ragged((0, list(tensors[0].shape)), (row, list(tensor.shape)))
    return torch.stack(tensors)


class _Ragged(Exception):
    """Place and shape of two tensors that do not stack."""


_COLLATE = {**default_collate_fn_map, Tensor: _stack}
"""torch's default, as it is without loading processes."""


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _kind(value: Any) -> str:
    return type(value).__name__ + (f" of {len(value)}" if isinstance(value, tuple | list) else "")


def padded(samples: Sequence[Any], values: float | Mapping[str, float]) -> list[Any]:
    """The samples, each of their tensors filled up at the end of every dimension to the largest of all samples. A
    microbatch holds the same samples on any number of ranks, and so is filled up alike.

    Args:
        values: what with; by name, where a pair has `input` and `target`, and a dict its keys. What is not named is
            filled with 0.

    Raises:
        UserError: for a name that no part has, or where a part has another number of dimensions in another sample.
    """
    names: set[str] = set()
    pairs = isinstance(samples[0], tuple | list)
    parts = [dict(zip(_PAIR, sample, strict=True)) for sample in samples] if pairs else list(samples)
    found = _padded(parts, "", values, names)
    if isinstance(values, Mapping) and (unknown := values.keys() - names):
        raise UserError(f"data.pad names {', '.join(sorted(unknown))}; a sample's parts are {', '.join(sorted(names))}")
    return [tuple(sample.values()) for sample in found] if pairs else found


def _padded(parts: list[Any], name: str, values: float | Mapping[str, float], names: set[str]) -> list[Any]:
    """One part of all samples."""
    first = parts[0]
    if isinstance(first, Mapping):
        names.update(first)
        columns = {key: _padded([part[key] for part in parts], key, values, names) for key in first}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(first, list | tuple) and not _is_numbers(first):
        columns_ = [_padded(list(column), name, values, names) for column in zip(*parts, strict=True)]
        return [type(first)(row) for row in zip(*columns_, strict=True)]
    if isinstance(first, str | bytes | bool | int | float) or first is None:
        return parts
    tensors = [torch.as_tensor(part) for part in parts]
    if len({tensor.ndim for tensor in tensors}) > 1:
        shapes = ", ".join(sorted({str(list(tensor.shape)) for tensor in tensors})[:3])
        raise DataError(f"data.pad: {name or 'a sample'} has the shapes {shapes} in one microbatch")
    value = values.get(name, 0) if isinstance(values, Mapping) else values
    largest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return [_filled(tensor, largest, value) for tensor in tensors]


def _is_numbers(part: Sequence[Any]) -> bool:
    """A list of numbers, such as a tokenizer gives, is one tensor."""
    return bool(part) and all(isinstance(one, int | float) for one in part)


def _filled(tensor: Tensor, sizes: list[int], value: float) -> Tensor:
    missing = [wanted - size for wanted, size in zip(sizes, tensor.shape, strict=True)]
    if not any(missing):
        return tensor
    return F.pad(tensor, [count for after in reversed(missing) for count in (0, after)], value=value)
