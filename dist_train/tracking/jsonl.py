"""metrics.jsonl: the primary record, one JSON object a line.

Everything outside a row's "time" is a function of config and samples seen, so the file is the same for any number of
ranks, and for a run that was interrupted and resumed.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.rundir import strict_json
from dist_train.rundir.files import sync_folder
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
        except OSError as error:
            if not self._refused:
                self._note(f"! {self._path.name}: {error.strerror}; its rows are kept until the disk takes them")
            self._refused = True
        else:
            self._refused = False

    def close(self) -> None:
        """Raises OSError when there are rows that the disk still refuses."""
        try:
            self._write()
        finally:
            os.close(self._file)

    def _write(self) -> None:
        while self._left:  # write(2) may take less than it is given
            self._left = self._left[os.write(self._file, self._left) :]


class RewoundJsonl:
    """A file of a run, rewound to where this session goes on, once there is something to write: a session that ends
    before its first step leaves it as it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts: tuple[int, Note] | None = None
        self._lines: JsonlFile | None = None
        self._evaluations: set[tuple[Any, Any]] = set()

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._facts = facts.first_step, note

    def append(self, rows: list[Row]) -> None:
        self._opened().append(rows)

    def evaluations(self) -> set[tuple[Any, Any]]:
        """Split and step of those that earlier sessions have left."""
        self._opened()
        return self._evaluations

    def close(self) -> None:
        lines, self._lines, self._facts = self._lines, None, None
        if lines is not None:
            lines.close()

    def _opened(self) -> JsonlFile:
        if self._lines is None:
            assert self._facts is not None
            step, note = self._facts
            self._evaluations = {(row.get("split"), row["step"]) for row in rewind(self._path, step)}
            self._lines = JsonlFile(self._path, note)
        return self._lines


class JsonlSink(Sink):
    """The rows of steps and evaluations."""

    name = "metrics.jsonl"

    def __init__(self, path: Path) -> None:
        self._record = RewoundJsonl(path)

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._record.begin(facts, note)

    def log_steps(self, interval: Interval) -> None:
        self._record.append([{"kind": "train", **row} for row in interval.rows])

    def log_evaluation(self, row: Row, confusion: np.ndarray | None) -> None:
        # A checkpoint may be older than the evaluation of its step, and the test split is judged at the best step: what
        # was written down before comes again, and is the same.
        if (row.get("split"), row["step"]) not in self._record.evaluations():
            self._record.append([{"kind": "evaluation", **row}])

    def close(self) -> None:
        self._record.close()


class SamplesSink(Sink):
    """samples.jsonl: which samples each step's microbatches were made of."""

    name = "samples.jsonl"

    def __init__(self, path: Path) -> None:
        self._record = RewoundJsonl(path)

    def begin(self, facts: RunFacts, note: Note) -> None:
        self._record.begin(facts, note)

    def log_samples(self, rows: list[Row]) -> None:
        self._record.append(rows)

    def close(self) -> None:
        self._record.close()


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
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    evaluations: list[Row] = []
    try:
        with open(temporary, "wb") as target:
            for line, row in _kept(path, step):
                target.write(line)
                if row.get("kind") == "evaluation":
                    evaluations.append(row)
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return evaluations


def _kept(path: Path, step: int) -> Iterator[tuple[bytes, Row]]:
    if step == 0 or not path.exists():
        return
    with open(path, "rb") as source:
        for line in source:
            row = _row(line)
            if row is not None and row["step"] <= step:
                yield line, row


def _row(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
