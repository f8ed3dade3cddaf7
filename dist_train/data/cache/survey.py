"""What the caches of a run's data hold, filling and checking them: for people, and for `dist-train cache`."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from dist_train.data.cache.files import ImageFiles, content_hash
from dist_train.data.cache.images import COUNTS, KeptImages
from dist_train.data.datasets.base import Splits
from dist_train.data.datasets.decoded import DecodedImages
from dist_train.data.retry import storage_error, with_patience
from dist_train.errors import UserError
from dist_train.heartbeat import beat

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


def fill(part: Part, broken: Callable[[str], None], share: tuple[int, int] = (0, 1)) -> Iterator[int]:
    """Decodes what is missing of a part, on all cores, and checks what is there, as long as there is room; yields how
    many samples are done.

    Args:
        broken: is told of images that cannot be read.
        share: which, of how many processes that do this at the same time.
    """

    def some(dataset: DecodedImages, indices: range) -> int:
        numbers, files = np.array(indices), part.kept.open()
        if files is not None and files.is_writable:
            missing = numbers[part.kept.look(dataset, numbers, dataset.rows(numbers))]
            try:
                decode(dataset, missing)
            except UserError:
                for place in range(len(missing)):
                    try:
                        decode(dataset, missing[[place]])
                    except UserError as error:
                        broken(str(error))
        return len(indices)

    def decode(dataset: DecodedImages, numbers: np.ndarray) -> None:
        for _ in part.kept.images(dataset, numbers, dataset.rows(numbers)):
            pass

    yield from _each(part, some, share)


def contents_of(splits: Splits, retry_s: float) -> dict[str, str]:
    """By split, a digest of the bytes of all its files, where data.cache.check is `content`; a broken one is as an
    empty one. The first that is not what was decoded is told.

    Raises:
        UserError: when the storage is away for longer than `retry_s` seconds.
    """
    found = {}
    for part in parts(splits):
        for name, dataset in part.sets.items() if part.kept.config.check == "content" else ():
            digest = hashlib.sha256()
            for hashes in _each(Part(kept=part.kept, sets={name: dataset}), partial(_hashes, part.kept, retry_s)):
                beat("init")
                digest.update(hashes)
            found[name] = digest.hexdigest()[:12]
    return found


def _hashes(kept: KeptImages, retry_s: float, dataset: DecodedImages, indices: range) -> bytes:
    found, files = [], kept.open()
    for index in indices:
        content: bytes | bytearray = b""
        try:
            content, _ = with_patience(partial(dataset.encoded, index), retry_s)
        except UserError as error:
            if storage_error(error) is not None:
                raise
        found.append(content_hash(content))
        with suppress(OSError):
            known = None if files is None else _record(files, dataset.row(index))
            if content and known is not None and known["content"].tobytes() != found[-1]:
                kept.tell_changed(dataset.path(index))
    return b"".join(found)


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
        record = _record(files, row)
        if record is not None and files.are_sound(np.array([row]), record[None])[0]:
            with suppress(UserError):
                is_same = content_hash(dataset.encoded(index)[0]) == record["content"].tobytes()
                return "sound" if is_same else "changed"
            return "changed"
    return "damaged"


def _record(files: ImageFiles, row: int) -> Any:
    """Of RECORDS; None where it is not whole. Raises OSError."""
    records, whole = files.records(np.array([row]))
    return records[0] if whole[0] else None


_Some = Callable[[DecodedImages, range], Any]


def _each(part: Part, function: _Some, share: tuple[int, int] = (0, 1)) -> Iterator[Any]:
    """`function` of all samples, some at once, in threads: decoders, hashes and checksums let others run."""
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // share[1])) as pool:
        try:
            yield from pool.map(lambda given: function(*given), islice(part.samples(), share[0], None, share[1]))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
