"""Sums over batches, added in the order of the batches, whichever ranks evaluated them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dist_train.parallel.process_group import ProcessGroup
from dist_train.tasks.base import Rows, Sums, Totals
from dist_train.tasks.per_sample import PerSample


class BatchSums:
    """This rank's statistics. Counts are added as they come. Float sums are kept batch by batch, so that they can be
    added in the order of the batches, whichever rank evaluated them; rows are put one after another in that order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._counts: dict[str, Tensor] = {}
        self._floats: dict[str, dict[int, Tensor]] = {}
        self._rows: dict[str, dict[int, Tensor]] = {}

    def add(self, number: int, sums: Sums) -> None:
        for name, value in sums.items():
            if isinstance(value, Rows):
                self._rows.setdefault(name, {})[number] = as_row_table(value.values)
            elif isinstance(value, PerSample):
                continue  # no sum of these is wanted
            elif value.dtype.is_floating_point:
                self._floats.setdefault(name, {})[number] = value
            else:
                self._counts[name] = self._counts[name] + value if name in self._counts else value.clone()

    def over_all_ranks(self, group: ProcessGroup) -> Totals:
        """The totals: the same on every rank, and for any number of ranks."""
        # Rank 0 may have no batch, if nothing of its share could be read. The first rank with one knows what to add.
        layout: list[tuple[str, Sequence[int], str | torch.dtype]]
        layout = [(name, value.shape, "counts") for name, value in self._counts.items()]
        layout += [(name, next(iter(values.values())).shape, "floats") for name, values in self._floats.items()]
        rows = [(name, next(iter(values.values()))) for name, values in self._rows.items()]
        layout += [(name, value.shape[1:], value.dtype) for name, value in rows]
        sums = {}
        for name, shape, kind in next(filter(None, group.gather_objects(layout)), []):
            if isinstance(kind, torch.dtype):
                sums[name] = self._joined(self._rows.get(name, {}), shape, kind, group)
            elif kind == "floats":
                # Each batch is filled in by one rank and zero on the others: adding the ranks changes no bit.
                table = torch.zeros(self._count, *shape, dtype=torch.float64)
                for number, value in self._floats.get(name, {}).items():
                    table[number] = value.to("cpu", torch.float64)
                sums[name] = group.all_reduce_host_(table).sum(0)
            else:
                total = torch.zeros(shape, dtype=torch.int64)
                sums[name] = group.all_reduce_host_(total + self._counts[name].cpu() if name in self._counts else total)
        return sums

    def _joined(self, own: dict[int, Tensor], shape: Sequence[int], dtype: torch.dtype, group: ProcessGroup) -> Tensor:
        """[samples, *shape], the rows of all batches in their order."""
        sizes = torch.zeros(self._count, dtype=torch.int64)
        for number, rows in own.items():
            sizes[number] = len(rows)
        ends = group.all_reduce_host_(sizes).cumsum(0).tolist()
        table = torch.zeros(ends[-1] if ends else 0, *shape, dtype=dtype)
        for number, rows in own.items():
            table[ends[number] - len(rows) : ends[number]] = rows
        return group.all_reduce_host_(table)


def as_row_table(values: Tensor) -> Tensor:
    """The values on the CPU, in a dtype that ranks can add up. -0.0 becomes 0.0, as it would by adding zeros."""
    values = values.detach().to("cpu")
    if values.is_floating_point():
        return values.to(torch.promote_types(values.dtype, torch.float32)) + 0.0
    return values.to(torch.uint8 if values.dtype == torch.bool else values.dtype)
