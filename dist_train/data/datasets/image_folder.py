"""A folder of images for each class; a file is opened when its sample is read."""

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.schema import ImageCache, ImageFolder
from dist_train.data.cache.files import Stamp
from dist_train.data.cache.images import Origin, Room
from dist_train.data.datasets.base import Splits, held_out
from dist_train.data.datasets.class_counts import class_lines
from dist_train.data.datasets.class_folders import ClassFolders, splits_as_classes
from dist_train.data.datasets.decoded import DecodedImages, Kept, kept_images
from dist_train.data.decode import decode_file, read_file

_SIZES = 20_000
"""Files whose size goes into a fingerprint. Each is a call to the file system, which is slow on some."""

_OF_A_KEY = 16
"""Files whose size goes into the name of a cache's folder, so that two sets with equal names rarely share one."""


class FileList:
    """Paths, in one array of bytes, and the class of each.

    A list of a million strings would be copied page by page into every forked loading process, by their reference
    counts; two arrays are not.

    Args:
        folder: what all paths begin with.
    """

    def __init__(self, paths: list[bytes], targets: list[int], folder: bytes = b"") -> None:
        self._folder = folder
        self._bytes = np.frombuffer(b"".join(paths), dtype=np.uint8)
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self.targets = torch.tensor(targets, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].tobytes()

    def paths(self, rows: np.ndarray) -> list[bytes]:
        """Of many rows, int64 [n]."""
        ends = self._ends[rows]
        starts, content = np.where(rows > 0, self._ends[rows - 1], 0), self._bytes.data
        return [bytes(content[start:end]) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]

    def fingerprint(self, most: int = _SIZES) -> str:
        """Of all names below the folder, and of the sizes of at most so many files, evenly spread."""
        names = self._bytes.tobytes().replace(self._folder, b"")  # the folder itself may move
        lengths = np.diff(self._ends, prepend=0) - len(self._folder)
        sizes = [_size(self[index]) for index in range(0, len(self), -(-len(self) // most))]
        found = hashlib.sha256(names)
        for part in (lengths, np.array(sizes)):
            found.update(part.astype("<i8").tobytes())
        return found.hexdigest()[:12]


class FolderImages(DecodedImages):
    """The samples `rows` of a list of files."""

    threads = True

    def __init__(
        self, files: FileList, rows: np.ndarray, image_size: int, resize: int | None, kept: Kept | None = None
    ) -> None:
        super().__init__(image_size, resize, kept)
        self._files, self._rows = files, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> tuple[Tensor, int]:
        row = int(self._rows[index])
        return decode_file(self._files[row]), int(self._files.targets[row])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self._rows[indices]

    def row(self, index: int) -> int:
        return int(self._rows[index])

    def targets_of(self, indices: np.ndarray) -> Tensor:
        return self._files.targets.index_select(0, torch.from_numpy(self._rows[indices]))

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        found = map(os.stat, self._files.paths(self._rows[indices]))
        return np.array([(one.st_size, one.st_mtime_ns) for one in found], dtype=np.int64).reshape(-1, 2)

    def encoded(self, index: int) -> tuple[bytearray, Stamp]:
        content, stamp = read_file(self._files[self._rows[index]])
        return content, Stamp(*stamp)

    def path(self, index: int) -> str:
        return os.fsdecode(self._files[self._rows[index]])

    def fingerprint(self) -> str:
        """Of the files that the samples were chosen from."""
        return self._files.fingerprint()


def build(config: ImageFolder, local_rank0_first: Any, classes: Sequence[str] | None = None) -> Splits:
    """`classes` are those of the training, where this data is evaluated alone."""
    root = Path(config.root)
    first = () if config.train else splits_as_classes(root)
    whole = ClassFolders(root / config.train if config.train else root, classes)
    notes = [*class_lines(whole.classes, whole.counts), *first, *whole.notes]
    files = _listed(whole)

    room = Room(config.cache) if isinstance(config.cache, ImageCache) else None

    def kept(files: FileList, folder: Path) -> Kept | None:
        if room is None or not isinstance(config.cache, ImageCache):
            return None
        origin = Origin(name=str(folder), rows=len(files), digest=partial(files.fingerprint, _OF_A_KEY))
        return kept_images(config.cache, config.image_size, config.resize, origin, room)

    def images(files: FileList, rows: np.ndarray, kept: Kept | None) -> FolderImages:
        return FolderImages(files, rows, config.image_size, config.resize, kept)

    def all_under(name: str) -> FolderImages:
        folders = ClassFolders(root / name, whole.classes)
        notes.extend(folders.notes)
        listed = _listed(folders)
        return images(listed, np.arange(len(listed)), kept(listed, folders.folder))

    own = kept(files, whole.folder)
    if config.eval is not None:
        train, evaluation = images(files, np.arange(len(files)), own), all_under(config.eval)
    else:
        assert config.eval_fraction is not None  # the schema asks for one of the two
        parts = held_out(config, whole.classes, files.targets)
        train, evaluation = images(files, parts.kept, own), images(files, parts.held, own)
        notes += parts.notes
    test = all_under(config.test) if config.test else None
    once = tuple(dict.fromkeys(notes))
    return Splits(train=train, evaluation=evaluation, test=test, classes=whole.classes, shape=train.shape, notes=once)


def _listed(folders: ClassFolders) -> FileList:
    """Sorted by class and path, so that every machine has one order."""
    return FileList(folders.paths, folders.targets, os.fsencode(folders.folder / "_")[:-1])


def _size(path: bytes) -> int:
    """Bytes of the file; -1 where it is gone, which reading its sample reports."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
