"""What the ranks of one step send each other: a flat tensor of each, added along one fixed tree (dist_train/tree.py).

Each rank receives one chunk of everybody's nodes (all-to-all), adds it along the tree, and hands the sum to all
(all-gather), which moves as many bytes as a ring all-reduce.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.tree import nodes_of_all, tree_sum


class Exchange:
    """Adds what all ranks hold of one flat tensor, along the tree."""

    def __init__(self, group: dist.ProcessGroup, rank: int, shares: Sequence[range], microbatches: int) -> None:
        self._group = group
        self._world_size = len(shares)
        self._nodes = nodes_of_all(shares, microbatches)
        self._mine = self._nodes[rank]
        self._root = (0, microbatches)
        self._space: dict[torch.dtype, Tensor] = {}

    def mean_into(self, target: Tensor, values: Sequence[Tensor]) -> None:
        """Writes the mean over all V microbatches into `target`.

        Args:
            target: flat [n]; may be one of `values`.
            values: this rank's nodes, each flat [n], in the order of tree.cover.
        """
        ranks, n = self._world_size, target.numel()
        if ranks == 1:
            torch.div(values[0], self._root[1], out=target)
            return
        chunk = -(-n // ranks)
        nodes = [node for of_rank in self._nodes for node in of_rank]
        received = self._received(target, len(nodes) * chunk)
        dist.all_to_all_single(
            received,
            _by_destination(values, ranks, chunk),
            [len(of_rank) * chunk for of_rank in self._nodes],
            [len(values) * chunk] * ranks,
            group=self._group,
        )
        parts = dict(zip(nodes, received.split(chunk), strict=True))
        mean = tree_sum(parts, self._root, torch.Tensor.add_).div_(self._root[1])  # lies where the first part did
        whole = target if n == chunk * ranks else target.new_empty(chunk * ranks)
        if target.device.type == "cpu":
            # gloo's all-gather copies through memory of its own; its all-to-all of equal parts does the same without.
            copies = received[: chunk * ranks].view(ranks, chunk)
            copies[1:] = mean
            dist.all_to_all_single(whole, copies.view(-1), group=self._group)
        else:
            dist.all_gather_into_tensor(whole, mean, group=self._group)
        if whole is not target:
            target.copy_(whole[:n])

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds integers over all ranks, in place: exact in any order."""
        if self._world_size > 1:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def _received(self, like: Tensor, size: int) -> Tensor:
        """Memory that is used again, which can be: sums run one after another. New pages cost as much as the sum."""
        space = self._space.get(like.dtype)
        if space is None or space.numel() < size:
            space = self._space[like.dtype] = like.new_empty(size)
        return space[:size]


def _by_destination(values: Sequence[Tensor], ranks: int, chunk: int) -> Tensor:
    """For rank 0 its chunk of every value, then for rank 1, and so on; the last chunk is filled up with zeros."""
    n = values[0].numel()
    if len(values) == 1 and n == ranks * chunk:
        return values[0]
    out = values[0].new_zeros(len(values), ranks * chunk)
    for row, value in zip(out, values, strict=True):
        row[:n].copy_(value)
    return out.view(len(values), ranks, chunk).transpose(0, 1).reshape(-1)
