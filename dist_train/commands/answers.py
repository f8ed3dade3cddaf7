"""What a model says, in words: a row for JSON and CSV, a line for people, a mask as a PNG file."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train.config.problems import printable
from dist_train.errors import UserCodeError, UserError
from dist_train.report.palette import palette
from dist_train.rundir.files import write_synced
from dist_train.tasks.base import Predictions

Row = dict[str, Any]
Answer = tuple[Row, tuple[str, ...]]
"""A row for programs, and the cells of a line for people."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How answers are worded.

    Attributes:
        classes: names; None where there are none.
        columns: names of the numbers of a table's target; empty where they have none.
        top: how many classes a row has, the likeliest first.
    """

    classes: Sequence[str] | None
    columns: Sequence[str] = ()
    top: int = 1

    def answers(self, found: Predictions) -> Iterator[Answer]:
        """Of each sample.

        Raises:
            UserError: when there are other classes than names, or fewer than `top`.
        """
        kind, values = found.kind, found.values.detach().cpu()
        if kind == "scores" and (self.classes is None or values.shape[1] != len(self.classes)):
            kind = "numbers"
        if kind == "numbers":
            return map(self._numbers, values)
        if kind == "places":
            return map(self._places, values)
        if self.classes is not None and values.shape[1] != len(self.classes):
            said = f"the model gives {values.shape[1]} scores, and the data has {len(self.classes)} classes"
            raise UserCodeError(said)
        if kind == "labels":
            return map(self._labels, values)
        if self.top > values.shape[1]:
            raise UserError(f"--top {self.top}: there are {values.shape[1]} classes")
        return (self._ranked(row, "probability" if kind == "probabilities" else "score") for row in values)

    def name(self, number: int) -> str:
        known = self.classes is not None and number < len(self.classes)
        return printable(self.classes[number], 200) if known else str(number)  # type: ignore[index]

    def _ranked(self, values: Tensor, unit: str) -> Answer:
        order = values.argsort(descending=True, stable=True)[: self.top].tolist()
        pairs = [(self.name(number), values[number].item()) for number in order]
        top = [{"class": name, unit: value} for name, value in pairs]
        cells = [(name, _percent(value) if unit == "probability" else f"{value:.3f}") for name, value in pairs]
        return {**top[0], **({"top": top} if self.top > 1 else {})}, tuple(chain.from_iterable(cells))

    def _labels(self, values: Tensor) -> Answer:
        labels = {self.name(number): values[number].item() for number in (values > 0.5).nonzero()[:, 0].tolist()}
        return {"labels": labels}, (_listed(labels) or "none",)

    def _numbers(self, values: Tensor) -> Answer:
        if values.ndim > 1:
            return {"values": values.tolist()}, (f"{list(values.shape)} numbers",)
        flat = values.flatten().tolist()
        names = self.columns if len(self.columns) == len(flat) else [f"value_{k}" for k in range(1, 1 + len(flat))]
        names = ["value"] if names == ["value_1"] else names
        return dict(zip(names, flat, strict=True)), tuple(f"{value:.6g}" for value in flat)

    def _places(self, values: Tensor) -> Answer:
        if values.ndim == 1:
            classes = [self.name(number) for number in values.tolist()]
            return {"classes": classes}, (" ".join(classes),)
        numbers, counts = values.unique(return_counts=True)
        pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
        shares = {self.name(number): count / values.numel() for number, count in pairs}
        return {"shares": shares}, (_listed(shares),)


def _percent(share: float) -> str:
    return f"{100 * share:5.1f} %"


def _listed(shares: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_percent(share).strip()}" for name, share in shares.items())


def write_mask(path: Path, classes: Tensor, height: int, width: int) -> None:
    """Writes a mask, int64 [h, w], as an indexed PNG file of another size: its pixels are the numbers of the classes.
    Above 256 classes it is grey of 16 bits."""
    from PIL import Image

    rows, columns = (torch.arange(new) * old // new for new, old in zip((height, width), classes.shape, strict=True))
    mask = classes.cpu()[rows[:, None], columns].numpy()
    if mask.max() > 255:
        image = Image.fromarray(mask.astype("uint16"))
    else:
        image = Image.fromarray(mask.astype("uint8"))
        image.putpalette(palette())
    content = io.BytesIO()
    image.save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, content.getvalue())


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a column for everything that some row has: `labels.disc`, `top.1.class`."""
    flat = [dict(_flat(row)) for row in rows]
    columns = dict.fromkeys(name for row in flat for name in row)
    written = io.StringIO(newline="")
    table = csv.DictWriter(written, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    return written.getvalue()


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict | list):
        yield name, value
        return
    parts = value.items() if isinstance(value, dict) else enumerate(value, 1)
    for key, part in parts:
        yield from _flat(part, f"{name}.{key}" if name else str(key))
