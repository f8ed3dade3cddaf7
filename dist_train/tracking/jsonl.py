"""metrics.jsonl: the primary record, one JSON object a line.

Everything outside a row's "time" is a function of config and samples seen, so the file is the same for any number of
ranks, and for a run that was interrupted and resumed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.rundir import strict_json
from dist_train.rundir.files import replacing, sync_folder
from dist_train.tracking.base import Interval, Note, Row, RunFacts, Sink


class JsonlFile:
    """A file that rows are appended to, each call written out before it returns.

    What the disk refuses is kept, and written before the next rows: a disk that is full for an hour costs no row.
    """

    def __init__(self, path: Path, note: Note) -> None:
        self._path, self._note = path, note
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._left = b""
        self._refused = False

    def append(self, rows: list[Row]) -> None:
        self._left += "".join(f"{row_to_json(row)}\n" for row in rows).encode()
        try:
            self._write()
            self._refused = False
        except OSError as error:
            if not self._refused:
                self._note(f"! {self._path.name}: {error.strerror}; its rows are kept until the disk takes them")
            self._refused = True

    def close(self) -> None:
        """Raises OSError when there are rows that the disk still refuses."""
        try:
            self._write()
        finally:
            os.close(self._file)

    def _write(self) -> None:
        while self._left:  # write(2) may take less than it is given
            self._left = self._left[os.write(self._file, self._left) :]


class _FileSink(Sink):
    """A sink of rows, whose file is rewound to where this session goes on before the first row is written: a session
    that ends before its first step leaves it as it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin: tuple[int, Note] | None = None
        self._file: JsonlFile | None = None
        self._known: set[tuple[Any, Any]] = set()
        """Split and step of the evaluations that earlier sessions have left."""

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._begin = facts.first_step, note

    def close(self) -> None:
        file, self._file, self._begin = self._file, None, None
        if file is not None:
            file.close()

    def _opened(self) -> JsonlFile:
        if self._file is None:
            assert self._begin is not None
            step, note = self._begin
            self._known = {(row.get("split"), row["step"]) for row in rewind(self._path, step)}
            self._file = JsonlFile(self._path, note)
        return self._file


class JsonlSink(_FileSink):
    """The rows of steps and evaluations."""

    name = "metrics.jsonl"

    def log_steps(self, interval: Interval) -> None:
        self._opened().append([{"kind": "train", **row} for row in interval.rows])

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        # A checkpoint may be older than the evaluation of its step, and the test split is evaluated at the best step:
        # what was written down before comes again, and is the same.
        file = self._opened()
        if (row.get("split"), row["step"]) not in self._known:
            file.append([{"kind": "evaluation", **row}])


class SamplesSink(_FileSink):
    """samples.jsonl: which samples each step's microbatches were made of."""

    name = "samples.jsonl"

    def log_samples(self, rows: list[Row]) -> None:
        self._opened().append(rows)


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
    the beginning, everything. The file is replaced in one go, so that a crash here leaves the old one or the new one.
    """
    evaluations: list[Row] = []
    with replacing(path) as temporary, open(temporary, "wb") as target:
        for line, row in _kept(path, step):
            target.write(line)
            if row.get("kind") == "evaluation":
                evaluations.append(row)
        target.flush()
        os.fsync(target.fileno())
    sync_folder(path.parent)
    return evaluations


def _kept(path: Path, step: int) -> Iterator[tuple[bytes, Row]]:
    if step == 0 or not path.exists():
        return
    with open(path, "rb") as source:
        for line in source:
            with suppress(ValueError):
                row = json.loads(line) if line.endswith(b"\n") else None
                if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
                    yield line, row
