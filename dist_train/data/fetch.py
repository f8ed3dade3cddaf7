"""What a loading process does with a request for samples: read them, augment them, stack them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from dist_train.data import decode
from dist_train.data.augment import Augment, check_images
from dist_train.data.datasets.base import Crop, ImageSet, crop_each
from dist_train.data.datasets.image_folder import FolderImages
from dist_train.data.failure import CapturedError, noted
from dist_train.data.retry import with_patience
from dist_train.data.sampler import LoadRequest
from dist_train.errors import ExitCode, UserError
from dist_train.randomness import key, seed_all, seeded

_SMALL = 1 << 20
"""Bytes of the largest array that goes through the pipe. That is less work than to pass the file descriptor of shared
memory, which takes half a millisecond on each side."""
_ALIGNED = 64
"""Bytes. What torch's allocator returns on a CPU begins at a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The answer to a request, still on the CPU and still uint8."""

    request: LoadRequest
    inputs: Any
    targets: Any

    def plain(self) -> "Loaded":
        """Plain numbers: without an autograd graph, which cannot leave the process, and without lazy views."""
        return self._each(lambda array: torch.as_tensor(array).detach().resolve_conj().resolve_neg())

    def packed(self) -> "Loaded":
        """Ready to leave a loading process: small tensors as arrays, large ones already in shared memory.

        The queue's own thread would move the large ones, but an error there would be lost, and the rank would wait
        forever.
        """
        packed = self._each(_packed)
        _check_travels((packed.inputs, packed.targets))
        return packed

    def unpacked(self) -> "Loaded":
        return self._each(_settled)

    def pin_memory(self) -> "Loaded":
        """The DataLoader calls this, in a thread, on the way to a GPU."""
        return self._each(lambda array: torch.as_tensor(array).pin_memory())

    def _each(self, function: Callable[[Any], Any]) -> "Loaded":
        return replace(self, inputs=each_array(function, self.inputs), targets=each_array(function, self.targets))


def _packed(tensor: Tensor) -> Tensor | np.ndarray:
    if tensor.nbytes > _SMALL:
        return tensor.share_memory_()
    try:
        return tensor.numpy()
    except TypeError:  # NumPy knows no bfloat16, and nothing smaller
        return tensor


def _settled(array: Tensor | np.ndarray) -> Tensor:
    """The array as a contiguous tensor, in memory that is aligned as torch aligns it.

    The place of numbers in memory may decide which kernel runs and in which order it adds, and so the last bit. It must
    not depend on how the numbers got here.
    """
    tensor = torch.as_tensor(array)
    # `is_contiguous` allows any stride where a size is 1, and kernels look at those too.
    strides = torch.empty(tensor.shape, device="meta").stride()
    if tensor.stride() == strides and tensor.data_ptr() % _ALIGNED == 0:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _check_travels(value: Any) -> None:
    """Raises UserError if a part of a sample cannot be sent: an object whose class another process cannot find would be
    lost silently."""
    try:
        ForkingPickler.dumps(each_array(lambda _: None, value))
    except Exception as error:
        raise UserError(
            f"a sample holds what cannot be handed over by a loading process ({error}): define its class at the top of "
            "a module, or set loader.workers=0",
            ExitCode.USER_CODE,
        ) from error


class Fetch(Dataset):
    """A data set as the DataLoader sees it: it answers a request with the samples, stacked.

    Every draw depends on (seed, epoch, index): it makes no difference which process loads a sample, or beside which.
    """

    def __init__(self, dataset: Any, seed: int, augment: Augment | None, retry_s: float) -> None:
        """Without `augment`, as in evaluation, an epoch makes no difference either. Reading is tried again for
        `retry_s` seconds while the storage is away."""
        self._dataset, self._seed, self._augment, self._retry_s = dataset, seed, augment, retry_s

    def __len__(self) -> int:
        return len(self._dataset)

    def prepare(self) -> None:
        """Must be called before processes are forked from this one.

        A forked process inherits the locks that other threads hold, those of imports and of libraries, without the
        threads that would release them. So whatever it needs is imported and set up here.
        """
        if isinstance(self._dataset, FolderImages):
            decode.load_decoders()
        if self._augment is not None:
            self._augment.prepare()

    def __getitems__(self, request: LoadRequest) -> Loaded | CapturedError:
        """Whatever a user's code raises, even StopIteration or SystemExit, is returned as a CapturedError."""
        try:
            inputs, targets = with_patience(lambda: self._read(request), self._retry_s)
            loaded = Loaded(request=request, inputs=inputs, targets=targets).plain()
            return loaded if get_worker_info() is None else loaded.packed()
        except BaseException as error:
            return CapturedError.of(error)

    def _read(self, request: LoadRequest) -> tuple[Any, Any]:
        epoch, indices, augment = request.epoch, request.indices, self._augment
        crop = augment.crop(epoch, indices) if augment else None
        if isinstance(self._dataset, ImageSet):
            inputs, targets = self._batch(request, crop)
        else:
            inputs, targets = self._samples(epoch, indices)
            if crop is not None:
                check_images(inputs, "random_resized_crop")
                inputs = crop_each(inputs, crop)
        if augment is None:
            return inputs, targets
        augment.check_targets(targets)
        return augment(inputs, epoch, indices), targets

    def _batch(self, request: LoadRequest, crop: Crop | None) -> tuple[Any, Any]:
        """Reads a request from an ImageSet at once. For a user's own set, the global generators are seeded before."""
        dataset, indices = self._dataset, request.indices
        if dataset.by_row:
            return dataset.__getitems__(indices, crop)
        purpose, position = ("microbatch", [request.step]) if self._augment else ("evaluation batch", [])
        with seeded(key(self._seed, purpose, *position, request.number)), noted("reading", indices, dataset):
            images, targets = dataset.__getitems__(indices, crop)
        if not len(images) == len(targets) == len(indices):
            found = f"{len(images)} images and {len(targets)} targets"
            raise UserError(f"{type(dataset).__name__} gives {found} for {len(indices)} samples", ExitCode.USER_CODE)
        return images, targets

    def _samples(self, epoch: int, indices: np.ndarray) -> tuple[Any, Any]:
        """Reads samples of a user's own data set one by one, and seeds the global generators for each."""
        purpose, position = ("sample", [epoch]) if self._augment else ("evaluation sample", [])
        samples = []
        with seeded(0):
            for index in indices:
                seed_all(key(self._seed, purpose, *position, int(index)))
                with noted("reading", [index], self._dataset):
                    samples.append(self._dataset[int(index)])
                _check_pair(samples[-1], f"sample {index:,} of {type(self._dataset).__name__}")
        with noted("stacking", indices, self._dataset):
            inputs, targets = collate(samples, collate_fn_map=_COLLATE)
        return inputs, targets


def _stack(tensors: list[Tensor], *, collate_fn_map: Any) -> Tensor:
    """torch's own function uses other memory in a loading process, and fails with another message there."""
    return torch.stack(tensors)


_COLLATE = {**default_collate_fn_map, Tensor: _stack}
"""torch's default, as it is without loading processes."""


def _check_pair(sample: Any, name: str) -> None:
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        given = f"{type(sample).__name__}" + (f" of {len(sample)}" if isinstance(sample, tuple | list) else "")
        raise UserError(f"{name} is a {given}, and must be a pair (input, target)", ExitCode.USER_CODE)


def each_array(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with every tensor and array in its dicts, lists and tuples replaced by `function` of it."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, Mapping):
        return {name: each_array(function, item) for name, item in value.items()}
    if hasattr(value, "_fields"):
        return type(value)(*(each_array(function, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(each_array(function, item) for item in value)
    return value


def sample_name(dataset: Any, index: int) -> str:
    """The name of a sample for the user: its file, where it has one, else its number."""
    return dataset.path(index) if isinstance(dataset, FolderImages) else f"sample {index:,}"
