"""The samples of the highest losses of an evaluation, the same ones for any number of ranks: NaN first, then by loss,
and of equal losses the first in the evaluation set."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.problems import printable
from dist_train.errors import ExitCode, UserError
from dist_train.parallel.process_group import ProcessGroup
from dist_train.report.words import Row
from dist_train.tasks.base import Sums
from dist_train.tasks.per_sample import PerSample

LONGEST = 200
"""Characters of a text that is shown."""
_Table = dict[str, Tensor]
"""What is kept of some samples, by name, each [samples, …]."""


@dataclass(frozen=True, kw_only=True)
class WorstSample:
    """One of them: its place in the evaluation set, and its part of what the task gave as `PerSample`."""

    index: int
    loss: float
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None
    probability: float | None = None
    text: np.ndarray | None = None


class WorstSamples:
    """The worst `most` of those that this rank has evaluated so far. They stay on the device, and nothing waits for it:
    they are read once, at the end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.kept: _Table = {}

    def add(self, indices: Tensor, sums: Sums) -> None:
        """
        Args:
            indices: int64 [m] on the CPU, ascending: the places of the batch's samples.

        Raises:
            UserError: (exit 10) when what the task gives does not fit the batch, or another batch.
        """
        samples = next((value for value in sums.values() if isinstance(value, PerSample)), None)
        if samples is None or not self._most:
            return
        new = _table(samples, indices)
        if self.kept and (old := _layout(self.kept)) != _layout(new):
            raise UserError(f"the task's PerSample differs from batch to batch: {old} and {_layout(new)}", _USER)
        kept = {name: torch.cat([self.kept[name], value]) for name, value in new.items()} if self.kept else new
        order = _order(kept["loss"])[: self._most]
        self.kept = {name: value.index_select(0, order) for name, value in kept.items()}

    def over_all_ranks(self, group: ProcessGroup) -> tuple[WorstSample, ...]:
        """On every rank the same, the worst first. Ranks have contiguous shares of the batches, in their order."""
        own = {name: value.cpu() for name, value in self.kept.items()}
        everywhere = group.gather_objects((_layout(own), own["loss"].tolist() if own else []))
        losses = torch.tensor([loss for _, some in everywhere for loss in some], dtype=torch.float64)
        # `not` and `<=`, for NaN
        chosen = [place for place in _order(losses)[: self._most].tolist() if not losses[place] <= -torch.inf]
        if not chosen:
            return ()
        first = sum(len(some) for _, some in everywhere[: group.ranks.rank])
        layout = next(filter(None, (layout for layout, _ in everywhere)))
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values()]
        # Each row is filled in by one rank and zero on the others, so that adding bytes changes none.
        table = torch.zeros(len(chosen), sum(sizes), dtype=torch.uint8)
        for row, place in enumerate(chosen):
            if own and 0 <= place - first < len(own["loss"]):
                parts = [value[place - first].reshape(-1).contiguous() for value in own.values()]
                table[row] = torch.cat([part.view(torch.uint8) for part in parts])
        columns = group.all_reduce_host_(table).split(sizes, dim=1)
        found = {
            name: column.reshape(-1).clone().view(dtype).reshape(-1, *shape).numpy()
            for (name, (shape, dtype)), column in zip(layout.items(), columns, strict=True)
        }
        rows = [{name: column[row] for name, column in found.items()} for row in range(len(chosen))]
        return tuple(WorstSample(**row | {"index": int(row["index"])}) for row in rows)


_USER = ExitCode.USER_CODE


def _table(samples: PerSample, indices: Tensor) -> _Table:
    given = {name: value.detach() for name, value in samples._asdict().items() if value is not None}
    for name, value in given.items():
        if value.shape[:1] != indices.shape or (name in ("loss", "probability") and value.ndim != 1):
            shape = list(value.shape)
            raise UserError(f"the task's PerSample has a {name} of shape {shape} for {len(indices)} samples", _USER)
    device, first, last = samples.loss.device, int(indices[0]), int(indices[-1])
    # They are on the CPU, and a copy may wait for the device.
    places = indices.to(device) if last - first >= len(indices) else torch.arange(first, last + 1, device=device)
    plain = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    return {**plain, "index": places, "loss": given["loss"].double()}


def _layout(table: _Table) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(value.shape[1:]), value.dtype) for name, value in table.items()}


def _order(losses: Tensor) -> Tensor:
    """NaN counts as the largest number."""
    return losses.sort(descending=True, stable=True).indices


# ---------------------------------------------------------------- in words


@dataclass(frozen=True, kw_only=True)
class Words:
    """How samples are shown as text.

    Attributes:
        classes: names of the classes.
        decode: from tokens to text, where the data set has it.
    """

    classes: Sequence[str] | None
    decode: Any = None

    def row(self, sample: WorstSample, name: str) -> Row:
        """`sample` for JSON; without a picture."""
        found = {"index": sample.index, "name": name, "loss": shortened(sample.loss)}
        for what, value in (("truth", sample.truth), ("prediction", sample.prediction)):
            found[what] = printable(self._said(value, is_token=sample.text is not None), LONGEST)
        share = sample.probability
        found |= {"probability": None if share is None else shortened(share), "picture": None, "text": None}
        if sample.text is not None:
            middle = len(sample.text) // 2
            parts = (sample.text[:middle], sample.text[middle : middle + 1], sample.text[middle + 1 :])
            before, token, after = map(self._text, parts)
            before, after = before[-LONGEST // 2 :], after[: LONGEST // 2 - len(token)]
            found |= {"text": before + token + after, "marked": [len(before), len(before) + len(token)]}
        return found

    def _text(self, tokens: np.ndarray) -> str:
        known = [token for token in tokens.tolist() if token >= 0]
        with suppress(Exception):  # there is none, or it knows other tokens
            return str(self.decode(known))
        return "".join(f"{token} " for token in known)

    def _said(self, value: np.ndarray | None, *, is_token: bool) -> str:
        if value is None:
            return ""
        if value.dtype.kind == "f":
            return ", ".join(f"{number:.4g}" for number in value.reshape(-1).tolist())
        if value.dtype.kind == "b":
            return ", ".join(map(self._class, np.flatnonzero(value).tolist())) or "none"
        if value.ndim == 0:
            return (self._text(value.reshape(1)).strip(" ") or "␣") if is_token else self._class(int(value))
        numbers, counts = np.unique(value[value >= 0], return_counts=True)
        shares = zip(map(self._class, numbers.tolist()), 100 * counts / max(counts.sum(), 1), strict=True)
        return ", ".join(f"{name} {share:.0f} %" for name, share in shares) or "none"

    def _class(self, number: int) -> str:
        return self.classes[number] if self.classes and 0 <= number < len(self.classes) else str(number)


def shortened(value: Any) -> Any:
    """A number, or nested lists of them, with six significant digits, as no more are shown; -0 as 0."""
    return [shortened(one) for one in value] if isinstance(value, list) else float(f"{value:.6g}") + 0.0
