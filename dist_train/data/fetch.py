"""What a loading process does with a request for samples: read them, augment them, stack them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

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
from dist_train.errors import ExitCode, UserError
from dist_train.randomness import key, seed_all, seeded

_SMALL = 1 << 20
"""Bytes up to which an array goes through the pipe: less work than the file descriptor of shared memory, which takes
half a millisecond on each side."""
_ALIGNED = 64
"""Bytes; what torch's allocator gives on a CPU begins at a multiple of it."""


class LoadRequest(NamedTuple):
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

    def plain(self) -> "Loaded":
        """Numbers alone: no graph of gradients, which no other process could have, and no view that is computed."""
        return self._each(lambda array: torch.as_tensor(array).detach().resolve_conj().resolve_neg())

    def packed(self) -> "Loaded":
        """For the way out of a loading process: small tensors as arrays, large ones in shared memory already.

        The queue's own thread would do the latter, but what fails there is lost, and the rank waits for it forever.
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
        arrays = {name: each_array(function, getattr(self, name)) for name in ("indices", "inputs", "targets")}
        return replace(self, **arrays)


def _packed(tensor: Tensor) -> Tensor | np.ndarray:
    if tensor.nbytes > _SMALL:
        return tensor.share_memory_()
    try:
        return tensor.numpy()
    except TypeError:  # NumPy knows no bfloat16, and nothing smaller
        return tensor


def _settled(array: Tensor | np.ndarray) -> Tensor:
    """Row by row, in memory that begins where torch would let it begin.

    Where numbers lie may decide which kernel works on them and in which order it adds, so the last bit; the way that
    they came here must not show.
    """
    tensor = torch.as_tensor(array)
    if tensor.stride() == _strides(tensor.shape) and tensor.data_ptr() % _ALIGNED == 0:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a contiguous tensor. `is_contiguous` allows any stride where a size is 1, and kernels look at those too."""
    strides = [1] * len(shape)
    for place in range(len(shape) - 1, 0, -1):
        strides[place - 1] = strides[place] * max(shape[place], 1)
    return tuple(strides)


def _check_travels(value: Any) -> None:
    """The same for what is no array: a class that another process cannot find would be lost in silence."""
    try:
        ForkingPickler.dumps(each_array(lambda _: None, value))
    except Exception as error:
        raise UserError(
            f"a sample holds what cannot be handed over by a loading process ({error}): define its class at the top of "
            "a module, or set loader.workers=0",
            ExitCode.USER_CODE,
        ) from error


def taken(answer: Loaded | CapturedError) -> Loaded:
    """The answer to a request, where it was wanted.

    Raises:
        UserError: what came instead; or any other exception that the data set raised, by its name and words.
    """
    if isinstance(answer, CapturedError):
        raise answer.as_exception()
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

    def prepare(self) -> None:
        """To be called before processes are forked from this one.

        A forked process has the locks that other threads held, those of imports and of libraries, without the threads
        that would release them: what it will need is imported and set up here, where nothing is missing.
        """
        if isinstance(self._dataset, FolderImages):
            decode.load_decoders()
        if self._augment is not None:
            self._augment.prepare()

    def __getitems__(self, request: LoadRequest) -> Loaded | CapturedError:
        """Whatever ends a user's code, be it StopIteration or SystemExit, ends it as a CapturedError."""
        try:
            inputs, targets = self._read(request)
            loaded = Loaded(
                step=request.step,
                number=request.number,
                parts=request.parts,
                indices=torch.from_numpy(request.indices),
                inputs=inputs,
                targets=targets,
            ).plain()
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
        """What an ImageSet reads at once; one of the user's has the global generators set for the microbatch."""
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
        """Samples of a user's own data set, one by one, each with the global generators set for it."""
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
    """Unlike torch's own not in other memory in a loading process, nor with other words where it fails."""
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
    """A sample by its file, where it has one, else by its number, for the user."""
    return dataset.path(index) if isinstance(dataset, FolderImages) else f"sample {index:,}"
