"""Tables: rows of a CSV file, or of the arrays of a .npz file, held in memory.

The mean and deviation that inputs are normalised by follow from the training split, so each start computes the same; a
checkpoint has them too, and `evaluate` compares.
"""

import csv
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from dist_train.config.problems import did_you_mean, printable
from dist_train.config.schema import Table
from dist_train.data.datasets.base import Splits, TensorImages, held_out
from dist_train.data.datasets.class_counts import class_lines
from dist_train.data.datasets.class_folders import EXTENSIONS
from dist_train.errors import DataError, UserError

FILES = (".csv", ".tsv", ".npz")
_MISSING = ("", "na", "n/a", "nan", "null")
"""What tables write where there is no value."""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What was chosen of a file.

    Attributes:
        path: of the file.
        inputs: numbers [N, …].
        targets: numbers or text [N, K].
        columns: names of the inputs, and of the targets.
        place: from a row to its name for a message.
    """

    path: Path
    inputs: np.ndarray
    targets: np.ndarray
    columns: tuple[list[str], list[str]]
    place: Callable[[int], str]


def build(config: Table, local_rank0_first: Any) -> Splits:
    places = {"train": config.train or ".", "eval": config.eval, "test": config.test}
    tables = {split: _read(Path(config.root) / name, config) for split, name in places.items() if name is not None}
    whole = tables["train"]
    classes = _classes(config, whole)
    parts = {split: (rows.inputs, _targets(rows, classes)) for split, rows in tables.items()}
    notes = tuple(class_lines(classes, np.bincount(parts["train"][1]).tolist())) if classes else ()
    if "eval" not in parts:
        inputs, targets = parts["train"]
        split = held_out(config, classes, targets)
        parts |= {name: (inputs[rows], targets[rows]) for name, rows in (("train", split.kept), ("eval", split.held))}
        notes += split.notes
    if (shapes := {inputs.shape[1:] for inputs, _ in parts.values()}) and len(shapes) > 1:
        raise DataError(f"the splits have inputs of several shapes: {', '.join(map(str, shapes))}")
    scale = _scale(parts["train"][0]) if config.normalize else None

    def rows(split: str) -> TensorImages:
        inputs, targets = parts[split]
        inputs = inputs if scale is None else (inputs - scale[0]) / scale[1]
        return TensorImages(_tensor(inputs), torch.from_numpy(targets))

    train = rows("train")
    return Splits(
        train=train,
        evaluation=rows("eval"),
        test=rows("test") if "test" in parts else None,
        classes=classes,
        outputs=whole.targets.shape[1] if classes is None else None,
        shape=train.shape,
        notes=notes,
        columns=dict(zip(("inputs", "targets"), whole.columns, strict=True)),
        scaling=scale and {"mean": scale[0].ravel().tolist(), "std": scale[1].ravel().tolist()},
    )


def read_inputs(
    path: Path, content: str | None, columns: Sequence[str], scaling: Mapping[str, Sequence[float]] | None
) -> Tensor:
    """The inputs alone, as the model takes them, [m, …]: float32, or uint8 where they are not normalised.

    Args:
        path: a .csv, .tsv or .npz file.
        content: of a CSV file, where it is not to be read from `path`.
        columns: names or patterns.
        scaling: `mean` and `std` of each number.

    Raises:
        UserError: (exit 13) when it is no such table.
    """
    rows = _read(path, Table.model_construct(inputs=[*columns], targets=[]), content)
    if scaling is None:
        return _tensor(rows.inputs)
    mean, std = (np.array(scaling[name]) for name in ("mean", "std"))
    if mean.size != rows.inputs[0].size:
        raise DataError(f"{path} has {rows.inputs[0].size} numbers a row, and the model takes {mean.size}")
    return _tensor((rows.inputs - mean.reshape(rows.inputs.shape[1:])) / std.reshape(rows.inputs.shape[1:]))


def _tensor(inputs: np.ndarray) -> Tensor:
    """float32; uint8 stays what it is, so that images that are not normalised can be augmented."""
    return torch.from_numpy(inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32))


def _scale(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each number, float64; a constant's deviation counts as 1, also where it is one but
    for rounding, as scikit-learn's StandardScaler has it."""
    mean, variance = inputs.mean(0, dtype=np.float64), inputs.var(0, dtype=np.float64)
    error = len(inputs) * np.finfo(np.float64).eps
    return mean, np.sqrt(np.where(variance <= error * variance + (mean * error) ** 2, 1.0, variance))


# ---------------------------------------------------------------- classes


def _classes(config: Table, rows: _Rows) -> tuple[str, ...] | None:
    """The names, numbers by size and text by the alphabet; None where the target is made of numbers."""
    is_text = rows.targets.dtype.kind == "U"
    if config.classes is False or (config.classes == "auto" and not is_text):
        if is_text:
            raise DataError(
                f"{rows.path}, {rows.place(0)}: the target is {str(rows.targets[0, 0])!r}, and data.classes false asks "
                "for numbers"
            )
        return None
    if rows.targets.shape[1] > 1:
        raise DataError(f"{rows.path}: a class is one column, and data.targets are {rows.targets.shape[1]}")
    return tuple(map(_class_name, np.unique(rows.targets)))


def _class_name(value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{value:g}"


def _targets(rows: _Rows, classes: tuple[str, ...] | None) -> np.ndarray:
    """int64 [N] classes, or float32 [N, K]."""
    if classes is None:
        return rows.targets.astype(np.float32)
    numbers = {name: number for number, name in enumerate(classes)}
    found = np.array([numbers.get(_class_name(value), -1) for value in rows.targets[:, 0]], dtype=np.int64)
    if (found < 0).any():
        row = int(np.argmax(found < 0))
        name = printable(_class_name(rows.targets[row, 0]))
        raise DataError(f"{rows.path}, {rows.place(row)}: {name} is no class of the training table")
    return found


# ---------------------------------------------------------------- files


def _read(path: Path, config: Table, content: str | None = None) -> _Rows:
    if content is None and path.suffix.lower() not in FILES:
        raise DataError(f"{path.absolute()} is no table: a .csv, .tsv or .npz file")
    try:
        if content is None and path.suffix.lower() == ".npz":
            rows = _npz(path, config)
        else:
            rows = _csv(
                path,
                config,
                path.open(newline="", encoding="utf-8-sig") if content is None else StringIO(content, newline=""),
            )
    except UserError:
        raise
    except Exception as error:  # of csv, zipfile, zlib and NumPy, over what is no table
        reason = getattr(error, "strerror", None) or printable(" ".join(str(error).split()), 200)
        raise DataError(f"cannot read the table {path.absolute()}: {reason}") from error
    if not len(rows.inputs):
        raise DataError(f"{path} has no rows")
    return rows


def _chosen(path: Path, names: Sequence[str], config: Table) -> tuple[list[str], list[str]]:
    """Names of the inputs and of the targets."""

    def matching(patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if not any(name == pattern or fnmatchcase(name, pattern) for name in names):
                has = printable(", ".join(names), 300)
                hint = did_you_mean(pattern, tuple(names))
                raise DataError(f"{path} has no column {pattern!r}: it has {has}{hint}")
        # In the order of the patterns, so that a file with its columns in another order gives the same.
        found = [name for pattern in patterns for name in names if name == pattern or fnmatchcase(name, pattern)]
        return list(dict.fromkeys(found))

    targets = matching(config.targets)
    inputs = [name for name in matching(config.inputs) if name not in targets]
    if not inputs:
        raise DataError(f"{path}: nothing is left for the input (data.inputs) beside the targets")
    return inputs, targets


def _csv(path: Path, config: Table, opened: TextIO) -> _Rows:
    with opened as file:
        delimiter = max(",;\t", key=file.readline().count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two columns are called {twice!r}")
        inputs, targets = _chosen(path, names, config)
        of_inputs, of_targets = ([names.index(name) for name in part] for part in (inputs, targets))
        numbers, lines, found = array("d"), array("q"), []
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(f"line {reader.line_num} has {len(row)} cells, and the header {len(names)}")
            try:
                numbers.extend([float(row[column]) for column in of_inputs])
            except ValueError:
                column = next(column for column in of_inputs if not _is_number(row[column]))
                raise _wrong(f"line {reader.line_num}", names[column], row[column]) from None
            found.append([row[column].strip() for column in of_targets])
            lines.append(reader.line_num)
    values = np.frombuffer(numbers).reshape(len(lines), len(inputs)) if lines else np.empty((0, len(inputs)))

    def place(row: int) -> str:
        return f"row {row + 1:,} (line {lines[row]:,})"

    _check_finite(values, inputs, place)
    typed = _typed(found, targets, place)
    return _Rows(path=path, inputs=values, targets=typed, columns=(inputs, targets), place=place)


def _typed(cells: list[list[str]], names: Sequence[str], place: Callable[[int], str]) -> np.ndarray:
    """Numbers where the first row has numbers, text where it has text."""
    for row, values in enumerate(cells):
        for name, value in zip(names, values, strict=True):
            if value.lower() in _MISSING:
                raise _wrong(place(row), name, value)
    texts = np.array(cells, dtype=np.str_).reshape(len(cells), len(names))
    if not cells or not all(map(_is_number, cells[0])):
        return texts
    try:
        numbers = texts.astype(np.float64)
    except ValueError:
        row, column = next((r, c) for r, values in enumerate(cells) for c, v in enumerate(values) if not _is_number(v))
        raise _wrong(place(row), names[column], cells[row][column]) from None
    _check_finite(numbers, names, place)
    return numbers


def _npz(path: Path, config: Table) -> _Rows:
    def place(row: int) -> str:
        return f"row {row + 1:,}"

    with np.load(path, allow_pickle=False) as file:
        inputs, targets = _chosen(path, file.files, config)
        arrays = {name: file[name] for name in (*inputs, *targets)}
    if len(lengths := {name: array.shape[:1] for name, array in arrays.items()}) and len(set(lengths.values())) > 1:
        raise ValueError(f"its arrays have several lengths: {lengths}")
    for name, values in arrays.items():
        if values.dtype.kind not in ("biuf" if name in inputs else "biufU"):
            raise ValueError(f"the array {name} is {values.dtype}, and no numbers")
        if values.dtype.kind == "f":
            _check_finite(values.reshape(len(values), -1), [name], place)
    found = _joined([arrays[name] for name in inputs])
    wanted = [arrays[name].reshape(len(arrays[name]), -1) for name in targets] or [np.empty((len(found), 0))]
    return _Rows(
        path=path, inputs=found, targets=np.concatenate(wanted, axis=1), columns=(inputs, targets), place=place
    )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """One array keeps its shape, [N] as [N, 1]; several are joined to [N, D]."""
    if len(arrays) == 1 and arrays[0].ndim > 1:
        return arrays[0]
    return np.concatenate([values.reshape(len(values), -1) for values in arrays], axis=1)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wrong(place: str, column: str, value: str) -> ValueError:
    said = f"is {printable(value)!r}, no number" if value.strip().lower() not in _MISSING else "has no value"
    advice = "fill it in, or leave the row or the column out"
    if value.lower().endswith(EXTENSIONS):
        advice = "images that a table lists need a data set of your own (docs/bring-your-own.md)"
    return ValueError(f"{place}, column {column} {said}: {advice}")


def _check_finite(values: np.ndarray, names: Sequence[str], place: Callable[[int], str]) -> None:
    """Raises ValueError for the first number of [N, D] that is none."""
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0].tolist()
        raise _wrong(place(row), names[min(column, len(names) - 1)], str(values[row, column]))
