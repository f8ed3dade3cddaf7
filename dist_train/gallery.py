"""The worst samples of an evaluation as people see them: named, in words, and with small pictures where there are some.
They change no result, and no failure of theirs ends a training."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dist_train.config.schema import RunConfig
from dist_train.data.datasets import Splits
from dist_train.data.thumbnails import Look, looked_at, plain_name, png_of
from dist_train.data.workers import number_of_workers
from dist_train.parallel.process_group import ProcessGroup
from dist_train.report.words import Row
from dist_train.rundir.files import remove_tree, replacing
from dist_train.rundir.layout import RunDir
from dist_train.worst import Words, WorstSample

MOST_S = 1.0
"""Seconds for the samples of one evaluation."""
SHARE = 0.01
"""Of the time since the session began, which may go into pictures; those of the last evaluation are always made."""


class NullGallery:
    """That of every rank but the first."""

    def row(self, split: str, worst: Sequence[WorstSample], *, is_last: bool) -> Row:
        """`worst`, a list with one for each sample, for JSON (docs/run-directory.md); empty where there are none."""
        return {}


class Gallery(NullGallery):
    """Keeps the pictures of each split's newest evaluation below `evaluations/` in the run directory.

    Args:
        run: None for names and words alone.
    """

    def __init__(self, config: RunConfig, splits: Splits, group: ProcessGroup, run: RunDir | None) -> None:
        self._config, self._splits, self._group, self._run = config, splits, group, run
        self._begun, self._spent = time.monotonic(), 0.0
        self._names: dict[str, dict[int, str]] = {}
        """By split and sample, of those that were looked at; their pictures do not change."""
        self._files: dict[str, dict[tuple[int, str], str]] = {}
        """By split, sample and what is shown, below the run directory."""

    def row(self, split: str, worst: Sequence[WorstSample], *, is_last: bool) -> Row:
        if not worst:
            return {}
        dataset, begun = getattr(self._splits, split), time.monotonic()
        if split not in self._names and self._run is not None:
            remove_tree(self._run.evaluation_pictures(split))  # another session may have had other data
        self._names.setdefault(split, {})
        self._forget(split, {sample.index for sample in worst})
        names, files = self._names[split], self._files[split]
        if is_last or self._spent <= SHARE * (begun - self._begun):
            with suppress(Exception):  # whatever it is, the training is worth more
                self._look(split, dataset, [sample.index for sample in worst if sample.index not in names])
                self._draw(split, worst)
            self._spent += time.monotonic() - begun
        words = Words(classes=self._splits.classes, decode=getattr(dataset, "decode", None))
        found = []
        for sample in worst:
            row = words.row(sample, names.get(sample.index, plain_name(sample.index)))
            masks = [files.get((sample.index, of)) for of in _OF]
            row |= {"picture": files.get((sample.index, "picture"))} | ({"masks": masks} if all(masks) else {})
            found.append(row)
        return {"worst": found}

    def _forget(self, split: str, indices: set[int]) -> None:
        """What is known of samples that are not among the worst any more, and all masks: they are of the evaluation
        before."""
        self._names[split] = {index: name for index, name in self._names[split].items() if index in indices}
        files = self._files.setdefault(split, {})
        for index, of in [key for key in files if key[0] not in indices or key[1] in _OF]:
            file = files.pop((index, of))
            if self._run is not None:
                remove_tree(self._run.path / file)

    def _look(self, split: str, dataset: Any, indices: Sequence[int]) -> None:
        config, device = self._config, self._group.device
        look = Look(dataset, config.seed, pictures=self._run is not None)
        workers = number_of_workers(config.loader, dataset, device, self._group.ranks.local_world_size, len(indices))
        for index, name, picture in looked_at(look, dataset, indices, device, workers, MOST_S):
            self._names[split][index] = name
            if picture:
                self._write(split, index, "picture", picture)

    def _draw(self, split: str, worst: Sequence[WorstSample]) -> None:
        for sample in worst:
            for of, mask in zip(_OF, (sample.truth, sample.prediction), strict=True):
                if mask is not None and mask.ndim == 2 and mask.dtype.kind in "iu":
                    self._write(split, sample.index, of, png_of(mask))

    def _write(self, split: str, index: int, of: str, content: bytes) -> None:
        if self._run is not None:
            path = self._run.evaluation_picture(split, index, of)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            self._files[split][index, of] = str(path.relative_to(self._run.path))


_OF = ("truth", "prediction")
