"""What a loading process does with a request for samples: read them, augment them, stack them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from dist_train.config.errors import ExitCode, UserError
from dist_train.data.augment import Augment, check_images
from dist_train.data.datasets.base import ImageSet, crop_each
from dist_train.data.datasets.image_folder import FolderImages
from dist_train.randomness import key, seed_all, seeded

_SMALL = 1 << 20
"""Bytes up to which an array goes through the pipe: less work than the file descriptor of shared memory, which takes
half a millisecond on each side."""


class Request(NamedTuple):
    """Samples to load together: `parts` consecutive microbatches of one step, beginning with `number`."""

    step: int
    number: int
    parts: int
    epoch: int
    indices: np.ndarray
    """int64 [parts × m]"""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The answer to a request, still on the CPU and still uint8."""

    step: int
    number: int
    parts: int
    indices: Any
    inputs: Any
    targets: Any

    def packed(self) -> "Loaded":
        """For the way out of a loading process: small tensors as arrays."""
        return self._each(_packed)

    def unpacked(self) -> "Loaded":
        return self._each(torch.as_tensor)

    def pin_memory(self) -> "Loaded":
        """The DataLoader calls this, in a thread, on the way to a GPU."""
        return self._each(lambda array: torch.as_tensor(array).pin_memory())

    def _each(self, function: Callable[[Any], Any]) -> "Loaded":
        arrays = {name: each_array(function, getattr(self, name)) for name in ("indices", "inputs", "targets")}
        return replace(self, **arrays)


def _packed(tensor: Tensor) -> Tensor | np.ndarray:
    small = tensor.nbytes <= _SMALL and tensor.dtype != torch.bfloat16  # which NumPy does not know
    return tensor.numpy() if small else tensor


class Failure(NamedTuple):
    """A UserError on its way out of a loading process; raised as an exception it would lose its exit code there."""

    message: str
    code: ExitCode


def taken(answer: Loaded | Failure) -> Loaded:
    """The answer to a request, at its destination.

    Raises:
        UserError: the one that came instead.
    """
    if isinstance(answer, Failure):
        raise UserError(answer.message, answer.code)
    return answer.unpacked()


class Fetch(Dataset):
    """A data set as the DataLoader sees it: asked for a request, it gives the samples stacked.

    Every draw depends on (seed, epoch, index): it makes no difference which process loads a sample, or beside which.
    """

    def __init__(self, dataset: Any, seed: int, augment: Augment | None) -> None:
        """Without `augment`, as in evaluation, an epoch makes no difference either."""
        self._dataset, self._seed, self._augment = dataset, seed, augment

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, request: Request) -> Loaded | Failure:
        try:
            inputs, targets = self._read(request)
        except UserError as error:
            return Failure(str(error), error.code)
        loaded = Loaded(
            step=request.step,
            number=request.number,
            parts=request.parts,
            indices=torch.from_numpy(request.indices),
            inputs=inputs,
            targets=targets,
        )
        return loaded if get_worker_info() is None else loaded.packed()

    def _read(self, request: Request) -> tuple[Any, Any]:
        epoch, indices, augment = request.epoch, request.indices, self._augment
        crop = augment.crop(epoch, indices) if augment else None
        if isinstance(self._dataset, ImageSet):
            inputs, targets = self._dataset.__getitems__(indices, crop)
        else:
            inputs, targets = self._samples(epoch, indices)
            if crop is not None:
                check_images(inputs, "random_resized_crop")
                inputs = crop_each(inputs, crop)
        return (augment(inputs, epoch, indices) if augment else inputs), targets

    def _samples(self, epoch: int, indices: np.ndarray) -> tuple[Any, Any]:
        """Samples of a user's own data set, one by one, each with the global generators set for it."""
        purpose, position = ("sample", [epoch]) if self._augment else ("evaluation sample", [])
        samples = []
        with seeded(0):
            for index in indices.tolist():
                seed_all(key(self._seed, purpose, *position, index))
                try:
                    samples.append(self._dataset[index])
                except Exception as error:
                    error.add_note(f"while reading sample {index:,} of {type(self._dataset).__name__}")
                    raise
        return _stacked(samples)


def _stacked(samples: list[Any]) -> tuple[Any, Any]:
    batch = default_collate(samples)
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise UserError("a sample must be a pair (input, target)", ExitCode.USER_CODE)
    return batch[0], batch[1]


def each_array(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with every tensor and array in its dicts, lists and tuples replaced by `function` of it."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, dict):
        return {name: each_array(function, item) for name, item in value.items()}
    if hasattr(value, "_fields"):
        return type(value)(*(each_array(function, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(each_array(function, item) for item in value)
    return value


def sample_name(dataset: Any, index: int) -> str:
    """A sample by its file, where it has one, else by its number, for the user."""
    return dataset.path(index) if isinstance(dataset, FolderImages) else f"sample {index}"
