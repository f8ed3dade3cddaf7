"""metrics.jsonl: the primary record, one JSON object a line.

Everything outside a row's "time" is a function of config and samples seen, so the file is the same for any number of
ranks, and for a run that was interrupted and resumed.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.rundir import strict_json
from dist_train.rundir.files import open_to_append, replacing, sync_folder
from dist_train.tracking.base import OF_THE_NEWEST, Interval, Note, Own, Row, RunFacts, Sink


class JsonlFile:
    """A file that rows are appended to, each call written out before it returns.

    It is opened with the first row, and rewound then to where this session goes on: a session that ends before its
    first step leaves it as it was. What the disk refuses is kept, and written before the next rows, in a file that is
    opened anew if need be: a disk that is full or away for an hour costs no row.

    Args:
        step: this session goes on after it.
    """

    def __init__(self, path: Path, step: int, note: Note) -> None:
        self._path, self._step, self._note = path, step, note
        self._rows: list[Row] = []
        self._left = b""
        """Of the rows before, what the disk has not taken."""
        self._file: int | None = None
        self._known: set[tuple[Any, Any]] | None = None
        """Split and step of the evaluations that earlier sessions have left; None before the file was rewound."""
        self._is_refused = False

    def append(self, rows: list[Row]) -> None:
        self._rows += rows
        try:
            self._write()
        except OSError as error:
            if not self._is_refused:
                self._note(f"! {self._path.name}: {error.strerror}; its rows are kept until the disk takes them")
            self._is_refused = True
            return
        if self._is_refused:
            self._note(f"! {self._path.name} is written again: no row is missing")
        self._is_refused = False

    def close(self) -> None:
        """Raises OSError when there are rows that the disk still refuses."""
        try:
            if self._rows or self._left:
                self._write()
        finally:
            self._close()

    def _write(self) -> None:
        if self._known is None:
            self._known = {(row.get("split"), row["step"]) for row in rewind(self._path, self._step)}
        if self._file is None:
            self._file = open_to_append(self._path)
        rows, self._rows = self._rows, []
        # A checkpoint may be older than the evaluation of its step, and the test split is evaluated at the best step:
        # what was written down before comes again, and is the same.
        new = (row for row in rows if "split" not in row or (row["split"], row["step"]) not in self._known)
        self._left += "".join(f"{row_to_json(row)}\n" for row in new).encode()
        try:
            while self._left:  # write(2) may take less than it is given
                self._left = self._left[os.write(self._file, self._left) :]
        except OSError:
            self._close()  # it may be of a file system that comes back as another one
            raise

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


class _FileSink(Sink):
    """A sink of rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: JsonlFile | None = None

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._file = JsonlFile(self._path, facts.first_step, note)

    def append(self, rows: list[Row]) -> None:
        assert self._file is not None
        self._file.append(rows)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class JsonlSink(_FileSink):
    """The rows of steps and evaluations, and of callbacks."""

    name = "metrics.jsonl"

    def log_steps(self, interval: Interval) -> None:
        self.append([{"kind": "train", **row} for row in interval.rows])

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        self.append([{"kind": "evaluation", **{key: row[key] for key in row if key not in OF_THE_NEWEST}}])

    def log_own(self, own: Own) -> None:
        if own.values:
            self.append([{"kind": "callback", **own.position, own.key: own.values, "time": {"unix": time.time()}}])


class SamplesSink(_FileSink):
    """samples.jsonl: which samples each step's microbatches were made of."""

    name = "samples.jsonl"

    def log_samples(self, rows: list[Row]) -> None:
        self.append(rows)


def row_to_json(row: Row) -> str:
    """One line of strict JSON. Floats come back bit for bit; what JSON has no number for is "nan", "inf" or "-inf"."""
    return strict_json.to_json(_plain(row), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def rewind(path: Path, step: int) -> list[Row]:
    """Drops what is not to be kept when a run goes on after `step`, and returns the kept evaluation rows.

    Dropped are rows of later steps, lines that a crash left half-written, and with step 0, a run that starts from
    the beginning, everything. The file is replaced in one go, so that a crash leaves the old one or the new one, and a
    session that was taken for dead and wakes up adds to a file without a name. Where the disk has no room for that, the
    end of the file is cut off instead; that needs none.

    Raises:
        OSError: when the folder is not there, or the disk refuses.
    """
    os.stat(path.parent)  # a folder that is away is no empty file
    evaluations: list[Row] = []
    size, is_cut, is_mixed = 0, False, False
    for line, row in _lines(path, step):
        if row is None:
            is_cut = True
            continue
        size += len(line)
        is_mixed = is_mixed or is_cut
        if row.get("kind") == "evaluation":
            evaluations.append(row)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as target:
            target.writelines(line for line, row in _lines(path, step) if row is not None)
            target.flush()
            os.fsync(target.fileno())
        sync_folder(path.parent)
    except OSError:
        if is_mixed:
            raise
        if is_cut:
            os.truncate(path, size)
    return evaluations


def _lines(path: Path, step: int) -> Iterator[tuple[bytes, Row | None]]:
    """Each line of the file, with its row where that is to be kept."""
    with suppress(FileNotFoundError), open(path, "rb") as source:
        for line in source:
            row = None
            with suppress(ValueError):
                row = json.loads(line) if line.endswith(b"\n") and step > 0 else None
            keeps = isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step
            yield line, row if keeps else None
