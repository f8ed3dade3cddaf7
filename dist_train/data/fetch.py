"""What a loading process does with a request for samples: read them, augment them, stack them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dist_train.data import decode
from dist_train.data.augment import Augment, check_images, lies_in_image
from dist_train.data.broken import TRIES, Broken, drawn, is_of_a_sample, reason_of
from dist_train.data.datasets.base import Crop, ImageSet, crop_each
from dist_train.data.datasets.decoded import DecodedImages, Named
from dist_train.data.failure import CapturedError, noted
from dist_train.data.loading_time import LoadingTime
from dist_train.data.retry import storage_error, with_patience
from dist_train.data.sampler import LoadRequest
from dist_train.data.stack import check_sample, stacked
from dist_train.errors import ExitCode, UserError
from dist_train.randomness import key, seed_all, seeded

_SMALL = 1 << 20
"""Bytes of the largest array that goes through the pipe. That is less work than to pass the file descriptor of shared
memory, which takes half a millisecond on each side."""
_ALIGNED = 64
"""Bytes. What torch's allocator returns on a CPU begins at a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The answer to a request, still on the CPU and still uint8.

    Attributes:
        request: with the places of the samples that were really read. Where there are none, inputs and targets are
            None.
        broken: those that were asked for and could not be read, in their order.
        seconds: that it took to wait for storage, to compute the samples, and to augment them.
    """

    request: LoadRequest
    inputs: Any
    targets: Any
    broken: tuple[Broken, ...] = ()
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)

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

    def __init__(
        self,
        dataset: Any,
        seed: int,
        augment: Augment | None,
        retry_s: float,
        on_error: str,
        pad: float | Mapping[str, float] | None = None,
    ) -> None:
        """
        Args:
            augment: None in evaluation, where an epoch makes no difference either.
            retry_s: how long reading is tried again while the storage is away.
            on_error: of a sample that cannot be read: `stop`, `substitute` another one, or `skip` it.
            pad: what samples of different sizes are filled up with.

        Raises:
            UserError: when it could not be known which sample that is.
        """
        self._dataset, self._seed, self._augment, self._retry_s = dataset, seed, augment, retry_s
        self._on_error, self._pad = on_error, pad
        self._waited_in_vain = False
        self._time = LoadingTime()
        at_once = isinstance(dataset, ImageSet) and not (dataset.by_row or isinstance(dataset, DecodedImages))
        if at_once and on_error != "stop":
            raise UserError(
                f"{'data' if augment else 'eval'}.on_error is {on_error}, and {type(dataset).__name__} reads a batch "
                "at a time, so that nobody knows which sample is broken: set its `by_row` to true, if an image depends "
                "on its index alone, or on_error to stop"
            )

    def __len__(self) -> int:
        return len(self._dataset)

    def prepare(self) -> None:
        """Must be called before processes are forked from this one.

        A forked process inherits the locks that other threads hold, those of imports and of libraries, without the
        threads that would release them. So whatever it needs is imported and set up here.
        """
        if isinstance(self._dataset, DecodedImages):
            decode.load_decoders()
            self._dataset.prepare()
        if self._augment is not None:
            self._augment.prepare()

    def __getitems__(self, request: LoadRequest) -> Loaded | CapturedError:
        """Whatever a user's code raises, even StopIteration or SystemExit, is returned as a CapturedError."""
        try:
            self._time.begin()
            loaded = self._patiently(request).plain()
            loaded = replace(loaded, seconds=self._time.end())
            return loaded if get_worker_info() is None else loaded.packed()
        except BaseException as error:
            return CapturedError.of(self._advised(error))

    def _patiently(self, request: LoadRequest) -> Loaded:
        """Storage that is away is waited for. When that was in vain it is a matter of these samples, if others can be
        read, and from then on others take their place at once: a folder that has gone would cost hours otherwise."""
        try:
            return with_patience(lambda: self._load(request), self._retry_s)
        except Exception as error:
            if self._on_error == "stop" or storage_error(error) is None:
                raise
        self._waited_in_vain = True
        return self._load(request)

    def _load(self, request: LoadRequest) -> Loaded:
        """Reads a request; if that fails, sample by sample, to find those that are broken and to do without them. Where
        none is, the second time tells: it was over in a moment, or is a matter of the samples together."""
        try:
            inputs, targets = self._read(request)
            return Loaded(request=request, inputs=inputs, targets=targets)
        except Exception as error:
            if self._on_error == "stop" or not self._is_broken(error):
                raise
        indices, broken = [], []
        for index in request.indices.tolist():
            found = self._failure(request, index)
            if found is not None:
                instead = self._instead(request, index, found)
                reason = reason_of(found, sample_name(self._dataset, index))
                broken.append(Broken(index=index, instead=instead, reason=reason))
                index = instead
            if index is not None:
                indices.append(index)
        request = request._replace(indices=np.array(indices, dtype=np.int64))
        inputs, targets = self._read(request) if indices else (None, None)
        return Loaded(request=request, inputs=inputs, targets=targets, broken=tuple(broken))

    def _is_broken(self, error: Exception) -> bool:
        return is_of_a_sample(error) and (self._waited_in_vain or storage_error(error) is None)

    def _failure(self, request: LoadRequest, index: int) -> Exception | None:
        """What comes of reading one sample alone, if it is broken."""
        try:
            self._raw(request._replace(indices=np.array([index])))
        except Exception as error:
            if not self._is_broken(error):
                raise
            return error
        return None

    def _instead(self, request: LoadRequest, index: int, failure: Exception) -> int | None:
        """The sample that takes the place of a broken one; None where it is left out.

        Raises:
            Exception: `failure`, where none of those drawn can be read: then it is a matter of the whole set.
        """
        if self._on_error == "skip" and storage_error(failure) is None:
            return None
        for attempt in range(TRIES):
            other = drawn(self._seed, request.epoch, index, attempt, len(self))
            if self._failure(request, other) is None:
                return other if self._on_error == "substitute" else None
        said = f"neither can {TRIES} others that were drawn in its place"
        if isinstance(failure, UserError):
            raise UserError(f"{failure}; {said}", failure.code) from failure
        failure.add_note(said)
        raise failure

    def _advised(self, error: BaseException) -> BaseException:
        """An error of ours over a broken sample, with the key that goes on without it."""
        is_ours = isinstance(error, UserError) and self._on_error == "stop"
        if not (is_ours and is_of_a_sample(error) and storage_error(error) is None):
            return error
        key = "data.on_error=substitute" if self._augment else "eval.on_error=skip"
        return UserError(f"{error} (to go on without it: {key})", ExitCode.DATA)

    def _read(self, request: LoadRequest) -> tuple[Any, Any]:
        """Inputs and targets, stacked and augmented."""
        epoch, indices, augment = request.epoch, request.indices, self._augment
        raw = self._raw(request)
        moved = False
        if isinstance(self._dataset, ImageSet):
            inputs, targets = raw
        else:
            moved, raw = self._moved(raw, epoch, indices)
            with noted("stacking", indices, self._dataset):
                inputs, targets = stacked(raw, indices, self._dataset, self._pad)
            if augment and (crop := augment.crop(epoch, indices)) is not None:
                check_images(inputs, "random_resized_crop")
                inputs = crop_each(inputs, crop)
        if augment is None:
            return inputs, targets
        if not moved:
            augment.check_targets(targets)
        return self._time.of_augment(augment)(inputs, epoch, indices), targets

    def _moved(self, samples: list[Any], epoch: int, indices: np.ndarray) -> tuple[bool, list[Any]]:
        """With targets that lie where their images will, as far as the data set says that they lie in the image; and
        whether it does."""
        parts: list[Any] = []
        each_array(parts.append, [sample[1] for sample in samples if not isinstance(sample, Mapping)])
        if self._augment is None or not any(map(lies_in_image, parts)):
            return False, samples
        moved = []
        for (image, target), index in zip(samples, indices.tolist(), strict=True):
            move = self._augment.mover(tuple(getattr(image, "shape", ())[-2:]), epoch, index)
            moved.append((image, each_array(move, target)))
        return True, moved

    def _raw(self, request: LoadRequest) -> Any:
        """What the data set itself gives: images and targets of an ImageSet, else the samples one by one."""
        if isinstance(self._dataset, ImageSet):
            crop = self._augment.crop(request.epoch, request.indices) if self._augment else None
            return self._batch(request, self._time.of_augment(crop) if crop else None)
        return self._samples(request.epoch, request.indices)

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

    def _samples(self, epoch: int, indices: np.ndarray) -> list[Any]:
        """Reads samples of a user's own data set one by one, and seeds the global generators for each."""
        purpose, position = ("sample", [epoch]) if self._augment else ("evaluation sample", [])
        samples = []
        with seeded(0):
            for index in indices:
                seed_all(key(self._seed, purpose, *position, int(index)))
                with noted("reading", [index], self._dataset):
                    samples.append(self._dataset[int(index)])
                check_sample(samples[-1], f"sample {index:,} of {type(self._dataset).__name__}")
        return samples


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
    return dataset.path(index) if isinstance(dataset, Named) else f"sample {index:,}"
