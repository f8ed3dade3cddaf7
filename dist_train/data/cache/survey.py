"""What the caches of a run's data hold, filling and checking them: for people, and for `dist-train cache`."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dist_train.data.cache.files import ImageFiles
from dist_train.data.cache.images import COUNTS, KeptImages, content_hash
from dist_train.data.datasets.base import Splits
from dist_train.data.datasets.decoded import DecodedImages
from dist_train.errors import UserError

STATES = ("sound", "damaged", "changed", "missing")
_AT_ONCE = 64
"""Samples that a thread takes at once."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The samples of a run that one folder keeps.

    Attributes:
        sets: the splits that they belong to.
    """

    kept: KeptImages
    sets: dict[str, DecodedImages] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.sets.values()))

    def samples(self) -> Iterator[tuple[DecodedImages, range]]:
        """All of them, a few at once."""
        for dataset in self.sets.values():
            for first in range(0, len(dataset), _AT_ONCE):
                yield dataset, range(first, min(first + _AT_ONCE, len(dataset)))


def parts(splits: Splits) -> list[Part]:
    """By folder; none where nothing is kept."""
    found: dict[int, Part] = {}
    for name in ("train", "evaluation", "test"):
        dataset = getattr(splits, name)
        if isinstance(dataset, DecodedImages):
            kept = (dataset.kept(cuts=True) if name == "train" else None) or dataset.kept(cuts=False)
            if kept is not None:
                found.setdefault(id(kept), Part(kept=kept)).sets[name] = dataset
    return [*found.values()]


def holding(part: Part) -> dict[str, Any]:
    """What a part holds: how many of how many images, bytes on disk, of all, and free. Makes nothing."""
    kept, begun = part.kept, part.kept.begun()
    there = sum(int(begun[dataset.rows(np.arange(len(dataset)))].sum()) for dataset in part.sets.values())
    room = os.statvfs(next(above for above in (kept.folder, *kept.folder.parents) if above.is_dir()))
    return {
        "folder": str(kept.folder),
        "splits": [*part.sets],
        "form": kept.form.name,
        "images": len(part),
        "there": there,
        "bytes": kept.taken,
        "estimated_bytes": len(part) * kept.form.usual,
        "free_bytes": room.f_bavail * room.f_frsize,
    }


def counts(splits: Splits) -> dict[str, int]:
    """What this process and those forked from it have done so far, by COUNTS; empty where nothing is kept."""
    sets = (getattr(splits, name) for name in ("train", "evaluation", "test"))
    kept = {id(one): one for data in sets if isinstance(data, DecodedImages) for one in data.caches}
    return {name: sum(int(one.counts[place]) for one in kept.values()) for place, name in enumerate(COUNTS) if kept}


# ---------------------------------------------------------------- filling and checking


def fill(part: Part, broken: Callable[[str], None]) -> Iterator[int]:
    """Decodes what is missing of a part, on all cores, and checks what is there; yields how many samples are done.

    Args:
        broken: is told of images that cannot be read.
    """

    def some(dataset: DecodedImages, indices: range) -> int:
        for index in indices:
            try:
                part.kept.image(dataset, index)
            except UserError as error:
                broken(str(error))
        return len(indices)

    yield from _each(part, some)


def verify(part: Part) -> dict[str, int]:
    """How many images are sound, damaged, changed or gone in their files, and missing."""

    def some(dataset: DecodedImages, indices: range) -> list[str]:
        return [_state(files if begun[dataset.row(i)] else None, dataset, i) for i in indices]

    begun = part.kept.begun()
    files = part.kept.open() if begun.any() else None
    found = dict.fromkeys(STATES, 0)
    for states in _each(part, some):
        for state in states:
            found[state] += 1
    return found


def _state(files: ImageFiles | None, dataset: DecodedImages, index: int) -> str:
    if files is None:
        return "missing"
    with suppress(OSError):
        row = dataset.row(index)
        record = files.record(row)
        if record is not None and files.checked(row, record) is not None:
            with suppress(UserError):
                return "sound" if content_hash(dataset.encoded(index)[0]) == record.content else "changed"
            return "changed"
    return "damaged"


def _each(part: Part, function: Callable[[DecodedImages, range], Any]) -> Iterator[Any]:
    """`function` of all samples, some at once, in threads: decoders, hashes and checksums let others run."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            yield from pool.map(lambda given: function(*given), part.samples())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
