"""What a loading process does with a request for samples: read them, augment them, stack them."""

import copy
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from dist_train.data import decode
from dist_train.data.augment import Augment, check_images, lies_in_image
from dist_train.data.broken import TRIES, Broken, drawn, is_of_a_sample, reason_of
from dist_train.data.datasets.base import Crop, ImageSet, crop_each
from dist_train.data.datasets.decoded import DecodedImages, Named
from dist_train.data.failure import CapturedError, noted
from dist_train.data.loaded import Loaded, each_array
from dist_train.data.loading_time import LoadingTime
from dist_train.data.retry import storage_error, with_patience
from dist_train.data.sampler import LoadRequest
from dist_train.data.stack import check_sample, stacked
from dist_train.data.windows import cut
from dist_train.errors import ExitCode, UserError
from dist_train.randomness import key, seed_all, seeded


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
        # A subclass of the user's that does not say so itself only inherits `threads`, and may do anything.
        kind = type(dataset)
        says = vars(kind).get("threads", False) is True or kind.__module__.startswith("dist_train.")
        self._threads = says and getattr(dataset, "threads", False) is True
        self._waited_in_vain = False
        self._time, self._wait = LoadingTime(), time.sleep
        at_once = isinstance(dataset, ImageSet) and not (dataset.by_row or isinstance(dataset, DecodedImages))
        if at_once and on_error != "stop":
            raise UserError(
                f"{'data' if augment else 'eval'}.on_error is {on_error}, and {type(dataset).__name__} reads a batch "
                "at a time, so that nobody knows which sample is broken: set its `by_row` to true, if an image depends "
                "on its index alone, or on_error to stop"
            )

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def may_thread(self) -> bool:
        """Whether threads may load: never the user's own code, and nothing that draws from the global generators."""
        draws = self._augment is not None and self._augment.draws_globally
        return self._threads and not draws

    def of_thread(self, stopped: threading.Event) -> "Fetch":
        """The same for one thread, which waits for no storage any more once it is `stopped`."""
        own = copy.copy(self)
        own._time, own._wait = LoadingTime(), stopped.wait  # type: ignore[assignment]
        return own

    def prepare(self) -> None:
        """Must be called before processes are forked from this one, or threads started.

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
            return with_patience(lambda: self._load(request), self._retry_s, self._wait)
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
        keys = "data.on_error=substitute; in evaluations eval.on_error=skip" if self._augment else "eval.on_error=skip"
        return UserError(f"{error} (to go on without it: {keys})", ExitCode.DATA)

    def _read(self, request: LoadRequest) -> tuple[Any, Any]:
        """Inputs and targets, stacked and augmented."""
        epoch, indices, augment, dataset = request.epoch, request.indices, self._augment, self._dataset
        uncut = isinstance(dataset, ImageSet) and (augment is None or augment.crop(epoch, indices) is None)
        if (there := dataset.in_place(indices) if uncut else None) is not None:
            (images, rows), targets = there, dataset.targets_of(indices)
            if augment is None:
                return cut(images, rows, None), targets
            augment.check_targets(targets)
            return self._time.of_augment(augment)(images, epoch, indices, rows), targets
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
        if dataset.by_row or self._threads:  # in a thread, the generators are those of the model's dropout
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


def sample_name(dataset: Any, index: int) -> str:
    """The name of a sample for the user: its file, where it has one, else its number."""
    return dataset.path(index) if isinstance(dataset, Named) else f"sample {index:,}"
