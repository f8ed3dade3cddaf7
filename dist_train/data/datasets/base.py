"""The data set's interface to the loader, images in memory, and a seeded split."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.data.permutation import Permutation
from dist_train.data.windows import cut
from dist_train.errors import DataError, UserError
from dist_train.randomness import key

Crop = Callable[[int, Tensor, int, int], Tensor]
"""(row of the batch, image [C, h, w], height, width) to [C, height, width]: a random resized crop, when one is due."""

_HASHED = 1 << 24
"""Bytes of images that a fingerprint reads, which takes a few hundredths of a second."""


class ImageSet(ABC):
    """Samples of one shape, read a batch at a time: labelled uint8 images, or inputs and targets of any other kind."""

    shape: tuple[int, ...]
    """Of one input; of an image channels, height, width."""
    in_memory = False
    """Whether reading is so cheap that loading processes would only cost time."""
    by_row = False
    """Whether an image depends on its index alone, and not on what is read in the same call: several microbatches may
    then be read at once."""
    threads = False
    """Whether several threads may read at once, beside the training: no draw from global generators, no state."""
    is_resident = False
    """Whether it lies on the rank's device, which loads it itself."""
    is_whole = False
    """Whether a target is a window of tokens, none of which is left out."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: np.ndarray, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
        """Images uint8 [m, *shape] and targets int64 [m] of the samples `indices`, int64 [m]; or other tensors [m, …].

        `crop` replaces the set's own resize from an image's size on disk to `shape`. A set that holds no images gives
        it to `no_crop`.
        """

    def in_place(self, indices: np.ndarray) -> tuple[Tensor, np.ndarray] | None:
        """All images where they lie, uint8 [N, *shape], not to be written, and the rows of the samples there, int64
        [m], so that what is made of them is the first copy; None where samples have to be read."""
        return None

    def targets_of(self, indices: np.ndarray) -> Tensor:
        """The targets of samples that are there `in_place`."""
        raise NotImplementedError


class TensorImages(ImageSet):
    """Images held in memory: uint8 [N, C, H, W], targets int64 [N]; or other tensors of N rows."""

    in_memory = by_row = threads = True

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets = images, targets
        self.shape = tuple(images.shape[1:])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: np.ndarray, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
        return crop_each(cut(self.images, indices, None), crop), self.targets_of(indices)

    def in_place(self, indices: np.ndarray) -> tuple[Tensor, np.ndarray] | None:
        is_read_as_it_is = type(self).__getitems__ is TensorImages.__getitems__
        return (self.images, indices) if is_read_as_it_is else None

    def targets_of(self, indices: np.ndarray) -> Tensor:
        return self.targets.index_select(0, torch.from_numpy(indices))

    def fingerprint(self) -> str:
        """Of all targets and all images; of a set larger than 16 MiB, of images evenly spread over it."""
        every = -(-self.images.nbytes // _HASHED)
        found = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for part in (self.targets, self.images[::every]):
            found.update(part.contiguous().numpy().tobytes())
        return found.hexdigest()[:12]


def crop_each(images: Tensor, crop: Crop | None) -> Tensor:
    """Every image of [m, C, H, W] cropped and resized to the size it had. Others must not be asked for it."""
    if crop is None or images.ndim != 4:
        no_crop(crop)
        return images
    height, width = images.shape[-2:]
    return torch.stack([crop(row, image, height, width) for row, image in enumerate(images)])


def no_crop(crop: Crop | None) -> None:
    """Raises UserError where a crop is asked for, of what is no image."""
    if crop is not None:
        raise UserError("augment: random_resized_crop works on images, and this data has none")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of a run.

    Attributes:
        train, evaluation, test: ImageSets, or map-style data sets of (input, target). Evaluation and test hold nothing
            of train. Test is used once, at the end of a run, since it has chosen nothing.
        classes: their names, in the order of the targets, where they have names.
        shape: of an input: channels, height, width of an image, the length of a window of tokens.
        outputs: how many numbers a target has, where it is numbers.
        scaling: `mean` and `std` of each number of an input, where the set has normalised them by its training split.
            They are saved with the model.
        columns: names of the `inputs` and `targets` of a table, in the order in which they are joined.
        vocabulary: how many tokens there are, where samples are made of tokens.
        token_bytes: bytes of text that each of these tokens stands for, where that is known.
        tokenizer: says whether two sets mean the same by their tokens, where that is known.
        characters: those that have a token each, where a token is a character.
        notes: lines for the user on the files that were found.
    """

    train: Any
    evaluation: Any
    test: Any | None = None
    classes: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    outputs: int | None = None
    scaling: dict[str, list[float]] | None = None
    columns: dict[str, list[str]] | None = None
    vocabulary: int | None = None
    token_bytes: tuple[int, ...] | None = None
    tokenizer: str | None = None
    characters: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def offered(self) -> dict[str, Any]:
        """What a model is told of the data, by the name that its parameter has."""
        classes = len(self.classes) if self.classes else None
        return {"shape": self.shape, "classes": classes, "outputs": self.outputs, "vocabulary": self.vocabulary}

    @property
    def tokens(self) -> int | None:
        """Of one sample, where it is a text."""
        return self.shape[0] if self.vocabulary is not None and self.shape and len(self.shape) == 1 else None

    @property
    def of_tokens(self) -> dict[str, Any]:
        """What tasks.build is told; `window` where no sample may leave a token out."""
        # A set of the user's may have an attribute of this name that means something else.
        window = self.tokens if isinstance(self.train, ImageSet) and self.train.is_whole else None
        return {"vocabulary": self.vocabulary, "token_bytes": self.token_bytes, "window": window}

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint says of the data."""
        names = ("vocabulary", "tokenizer", "characters", "scaling", "columns")
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"shape": self.shape, "classes": self.classes, "outputs": self.outputs, **found}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A split: the samples kept for training and those held out, int64 and ascending, and notes for the user."""

    kept: np.ndarray
    held: np.ndarray
    notes: tuple[str, ...]


def held_out(config: Any, classes: Sequence[str] | None, targets: Any) -> Parts:
    """A split drawn from `split_seed`, with at least one sample in each part.

    Args:
        config: the section `data`: eval_fraction, split, split_seed.
        classes: their names; None where the targets [N] are no classes, and the split is a random one.

    Raises:
        UserError: when there are too few samples.
    """
    numbers = np.asarray(targets)
    stratified = config.split == "stratified" and classes is not None
    groups = _by_class(numbers) if stratified else [np.arange(len(numbers))]
    drawn = [_drawn(rows, config, int(numbers[rows[0]]) if stratified else None) for rows in groups if len(rows)]
    held = np.sort(np.concatenate([part for part, _ in drawn])) if drawn else np.arange(0)
    kept = np.sort(np.concatenate([part for _, part in drawn])) if drawn else held
    if not len(held):
        few = "no class has two samples" if len(numbers) > 1 else "one sample"
        raise DataError(f"{few} cannot be split into training and evaluation: bring more data")
    return Parts(kept=kept, held=held, notes=tuple(_split_notes(stratified, classes or (), numbers, kept, held)))


def _by_class(numbers: np.ndarray) -> list[np.ndarray]:
    """The samples of each class that there is."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _drawn(rows: np.ndarray, config: Any, number: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(held out, kept) of some samples: one at least in each, but a single one is kept."""
    purpose = () if number is None else (number,)
    order = Permutation(len(rows), key(config.split_seed, "split", *purpose))(np.arange(len(rows)))
    count = min(max(round(len(rows) * config.eval_fraction), 1), len(rows) - 1)
    return rows[order[:count]], rows[order[count:]]


def _split_notes(
    stratified: bool, classes: Sequence[str], numbers: np.ndarray, kept: np.ndarray, held: np.ndarray
) -> Iterator[str]:
    if stratified:
        yield f"{len(held):,} of {len(numbers):,} samples are held out for evaluation, some of every class (stratified)"
    for part, rows in (("training", kept), ("evaluation", held)):
        lacks = sorted(set(range(len(classes))) - set(np.unique(numbers[rows]).tolist()))
        if lacks:
            what = f"{classes[lacks[0]]!r}" + (f" and {len(lacks) - 1} other classes" if len(lacks) > 1 else "")
            advice = "" if stratified else ": data.split=stratified takes some of every class that has two"
            yield f"the {part} split has no sample of {what}{advice}"
