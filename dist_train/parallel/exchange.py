"""What the ranks of one step send each other: a flat tensor of each, added along one fixed tree
(dist_train/parallel/tree.py).

Each rank receives one chunk of everybody's nodes (all-to-all), adds it along the tree, and gives the sum to all
(all-gather), which moves as many bytes as a ring all-reduce. On several nodes of as many ranks each, it goes in two
levels: the ranks of a node add up what their node knows of the tree, those with the same place on their nodes add up
the nodes', each for its own chunk. Between nodes every number then travels once each way, not once for each rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.parallel.tree import Node, cover, tree_sum

_PIECE = 64 << 20
"""Bytes that are added at a time: DDP's first step has the whole model in one bucket, which would triple in memory."""
_ALIGNED = 16
"""Bytes at whose multiples every rank's chunk begins: what vector instructions and NCCL's kernels want."""


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The groups that the sum travels on.

    Attributes:
        inside: the ranks of this rank's node; of all nodes where `across` is None.
        across: the ranks with the same place on their nodes, in the order of the nodes.
        per_node: ranks in `inside`.
    """

    inside: dist.ProcessGroup
    across: dist.ProcessGroup | None = None
    per_node: int


class Exchange:
    """Adds what all ranks hold of one flat tensor, along the tree.

    Args:
        piece: bytes that are added at a time.
        all_gather: whether sums are given to all by all-gather; None: on a GPU.
    """

    def __init__(
        self,
        lanes: Lanes,
        rank: int,
        shares: Sequence[range],
        microbatches: int,
        *,
        piece: int = _PIECE,
        all_gather: bool | None = None,
    ) -> None:
        self._ranks, self._microbatches = len(shares), microbatches
        self._piece, self._all_gather = piece, all_gather
        root, per_node = (0, microbatches), lanes.per_node
        first = rank - rank % per_node
        here = [cover(share, root) for share in shares[first : first + per_node]]
        if lanes.across is None:
            self._levels = [_Level(group=lanes.inside, brought=here, wanted=[root])]
        else:
            # A node's ranks are neighbours, so their shares are one range.
            ends = [(shares[at].start, shares[at + per_node - 1].stop) for at in range(0, self._ranks, per_node)]
            nodes = [cover(range(*end), root) for end in ends]
            self._levels = [
                _Level(group=lanes.inside, brought=here, wanted=nodes[rank // per_node]),
                _Level(group=lanes.across, brought=nodes, wanted=[root]),
            ]

    def mean_into(self, target: Tensor, values: Sequence[Tensor], divisor: int | None = None) -> None:
        """Writes the mean over all V microbatches into `target`.

        Args:
            target: flat [n]; may be one of `values`.
            values: this rank's nodes, each flat [n], in the order of tree.cover.
            divisor: what the sum is divided by; None for V.
        """
        divisor = self._microbatches if divisor is None else divisor
        if self._ranks == 1:
            torch.div(values[0], divisor, out=target)
            return
        unit = self._ranks * max(1, _ALIGNED // target.element_size())
        piece = max(1, self._piece // target.element_size() // unit) * unit
        for begin in range(0, target.numel(), piece):
            rows = slice(begin, begin + piece)
            self._mean_into(target[rows], [value[rows] for value in values], unit, divisor)

    def _mean_into(self, target: Tensor, values: Sequence[Tensor], unit: int, divisor: int) -> None:
        n = target.numel()
        size = -(-n // unit) * unit
        whole = target if n == size else target.new_empty(size)
        spaces = []
        for level in self._levels:  # [size] of every node, then a chunk of it, then a chunk of that
            size //= level.members
            values, space = level.add(values, size)
            spaces.append(space)
        mean = values[0].div_(divisor)
        for level, space, outer in zip(self._levels[::-1], spaces[::-1], [*spaces[-2::-1], whole], strict=True):
            mean = self._gather_chunks(level, mean, outer[: level.members * mean.numel()], space)
        if whole is not target:
            target.copy_(whole[:n])

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Adds integers over all ranks, in place: exact in any order."""
        for level in self._levels if self._ranks > 1 else []:
            dist.all_reduce(tensor, group=level.group)
        return tensor

    def _gather_chunks(self, level: "_Level", mean: Tensor, whole: Tensor, space: Tensor) -> Tensor:
        """Fills `whole` with the members' chunks; `space` is free, or has `mean` as its first part."""
        if self._all_gather if self._all_gather is not None else mean.is_cuda:
            dist.all_gather_into_tensor(whole, mean, group=level.group)
            return whole
        # gloo's all-gather copies through memory of its own; its all-to-all of equal parts does the same without.
        copies = space[: level.members * mean.numel()].view(level.members, -1)
        copies[0 if mean.data_ptr() != space.data_ptr() else 1 :] = mean
        dist.all_to_all_single(whole, copies.view(-1), group=level.group)
        return whole


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One group, which adds what its members bring of the tree to fewer nodes of it.

    Attributes:
        brought: by member, the nodes that it has.
        wanted: the nodes that are added up.
        spaces: memory that is used again, by type.
    """

    group: dist.ProcessGroup
    brought: list[list[Node]]
    wanted: list[Node]
    spaces: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @property
    def members(self) -> int:
        return len(self.brought)

    def add(self, values: Sequence[Tensor], chunk: int) -> tuple[list[Tensor], Tensor]:
        """This member's chunk of each node that is wanted; and the memory that it lies in, from its beginning on."""
        nodes = [node for of_member in self.brought for node in of_member]
        received = self._received(values[0], len(nodes) * chunk)
        dist.all_to_all_single(
            received,
            _by_destination(values, self.members, chunk),
            [len(of_member) * chunk for of_member in self.brought],
            [len(values) * chunk] * self.members,
            group=self.group,
        )
        parts = dict(zip(nodes, received.split(chunk), strict=True))
        return [tree_sum(parts, node, torch.Tensor.add_) for node in self.wanted], received

    def _received(self, like: Tensor, size: int) -> Tensor:
        """Memory that is used again, since sums run one after another. New pages would cost as much as the sum; a GPU's
        allocator keeps its pages."""
        if like.is_cuda:
            return like.new_empty(size)
        space = self.spaces.get(like.dtype)
        if space is None or space.numel() < size:
            space = self.spaces[like.dtype] = like.new_empty(size)
        return space[:size]


def _by_destination(values: Sequence[Tensor], members: int, chunk: int) -> Tensor:
    """For member 0 its chunk of every value, then for member 1, and so on; the last is filled up with zeros."""
    n = values[0].numel()
    if len(values) == 1 and n == members * chunk:
        return values[0]
    out = values[0].new_zeros(len(values), members * chunk)
    for row, value in zip(out, values, strict=True):
        row[:n].copy_(value)
    return out.view(len(values), members, chunk).transpose(0, 1).reshape(-1)


def regular(places: Sequence[tuple[int, int]]) -> int | None:
    """Ranks on each node, where there are several nodes of as many and a node's ranks are neighbours; else None.

    Args:
        places: by rank, its place on its node and the number of ranks there.
    """
    per_node = places[0][1]
    as_many = all(place == (rank % per_node, per_node) for rank, place in enumerate(places))
    return per_node if as_many and 1 < per_node < len(places) and len(places) % per_node == 0 else None
