"""What the ranks of one step send each other: a flat tensor of each, added along one fixed tree
(dist_train/parallel/tree.py). A node is a node of that tree here, and a computer is a machine.

Each rank receives one chunk of every rank's nodes (all-to-all), adds it along the tree, and gives the sum to all
(all-gather). That moves as many bytes as a ring all-reduce. On several machines there are two levels. First the ranks
of a machine add up what that machine knows of the tree. Then the ranks with the same place on their machines add up
what the machines know, each for its own chunk. So each number travels between machines once each way, and not once for
each rank. Many machines make more levels of the same kind: as many bytes in fewer messages (docs/scale.md). Where there
are few numbers, every rank sends everything to every rank instead. Two ranks give each other halves, without a copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain
from math import gcd, isqrt

import torch
import torch.distributed as dist
from torch import Tensor

from dist_train.parallel.tree import Node, cover, tree_sum

_PIECE = 64 << 20
"""Bytes that are added at a time: in DDP's first step one bucket has the whole model, and would triple in memory."""
_ALIGNED = 16
"""Every rank's chunk begins at a multiple of so many bytes: vector instructions and NCCL's kernels want that."""


_LEVEL = 32
"""Messages that a further level has to save: it costs two more collectives a piece, and copies between them."""
_FEW, _FEW_OF_TWO = 64 << 10, 8 << 20
"""Bytes of all ranks up to which everybody sends everything to everybody, since one collective more would cost as much.
Two ranks send no more bytes that way, but each adds more."""


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The groups that something travels on between all ranks, the innermost first.

    Attributes:
        groups: by level, the group that this rank is in. Write ranks as numbers whose digits have the bases `sizes`,
            the lowest digit first: the ranks of a level's group differ in that level's digit alone, in its order.
        sizes: by level, the members of a group; their product is the number of ranks.
    """

    groups: tuple[dist.ProcessGroup, ...]
    sizes: tuple[int, ...]


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
        root, block = (0, microbatches), 1

        def known(at: int) -> list[Node]:
            """The nodes that the ranks of a block know together. They are neighbours, so their shares are one range."""
            return cover(range(shares[at * block].start, shares[(at + 1) * block - 1].stop), root)

        self._levels = []
        for group, size in zip(lanes.groups, lanes.sizes, strict=True):
            outer = rank // (block * size)
            brought = [known(at) for at in range(outer * size, (outer + 1) * size)]
            place = rank // block % size
            block *= size
            self._levels.append(_Level(group=group, place=place, brought=brought, wanted=known(outer)))

    def mean_into(self, target: Tensor, values: Sequence[Tensor], divisor: int | None = None) -> None:
        """Writes the mean over all V microbatches into `target`.

        Args:
            target: flat [n]; may be one of `values`.
            values: this rank's nodes, each flat [n], in the order of tree.cover; they are used up.
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
            self._add_piece(target[rows], [value[rows] for value in values], unit, divisor)

    def _add_piece(self, target: Tensor, values: Sequence[Tensor], unit: int, divisor: int) -> None:
        level = self._levels[0]
        sent = target.nbytes * sum(map(len, level.brought))
        if len(self._levels) == 1 and sent <= (_FEW_OF_TWO if level.are_two else _FEW):
            torch.div(level.add_at_once(values), divisor, out=target)
        elif len(self._levels) == 1 and level.are_two:
            level.mean_of_two(values[0], divisor)
            if target.data_ptr() != values[0].data_ptr():
                target.copy_(values[0])
        else:
            self._in_chunks(target, values, unit, divisor)

    def _in_chunks(self, target: Tensor, values: Sequence[Tensor], unit: int, divisor: int) -> None:
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
    """One group of ranks. Its members bring nodes of the tree, and add them up to fewer nodes.

    Attributes:
        place: this rank's in the group.
        brought: by member, the nodes that it brings.
        wanted: the nodes that come out.
        spaces: memory that is used again, by type.
    """

    group: dist.ProcessGroup
    place: int
    brought: list[list[Node]]
    wanted: list[Node]
    spaces: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @property
    def members(self) -> int:
        return len(self.brought)

    def add(self, values: Sequence[Tensor], chunk: int) -> tuple[list[Tensor], Tensor]:
        """This member's chunk of each wanted node; and the memory that these lie in, from its beginning on."""
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

    @cached_property
    def are_two(self) -> bool:
        """Whether there are two members, each with one child of the one wanted node."""
        return self.members == 2 and all(len(of_member) == 1 for of_member in self.brought) and len(self.wanted) == 1

    def add_at_once(self, values: Sequence[Tensor]) -> Tensor:
        """The one wanted node: the sum of all members' nodes, which everybody sends to everybody."""
        n = values[0].numel()
        sizes = [0 if member == self.place else len(of_member) * n for member, of_member in enumerate(self.brought)]
        received = self._received(values[0], sum(sizes))
        own = values[0] if len(values) == 1 and self.members == 2 else torch.cat([*values] * (self.members - 1))
        given = [0 if member == self.place else len(values) * n for member in range(self.members)]
        dist.all_to_all_single(received, own, sizes, given, group=self.group)
        parts = dict(zip(self.brought[self.place], values, strict=True))
        others = chain(*self.brought[: self.place], *self.brought[self.place + 1 :])
        parts |= zip(others, received.split(n), strict=True)
        (wanted,) = self.wanted
        return tree_sum(parts, wanted, torch.Tensor.add_)

    def mean_of_two(self, value: Tensor, divisor: int) -> None:
        """Turns the one node that each of two members has into the mean, in place. Each member adds one half of it."""
        half = value.numel() // 2 * value.element_size() // _ALIGNED * _ALIGNED // value.element_size()
        mine, others = value[:half], value[half:]
        if self.place == 1:
            mine, others = others, mine
        received = self._received(value, mine.numel())
        self._swap(others, received)
        torch.add(*((mine, received) if self.place == 0 else (received, mine)), out=mine).div_(divisor)
        self._swap(mine, others)

    def _swap(self, given: Tensor, received: Tensor) -> None:
        """Sends a tensor to the other one of two members, and receives one from it."""
        sizes, given_sizes = ([0, t.numel()] if self.place == 0 else [t.numel(), 0] for t in (received, given))
        dist.all_to_all_single(received, given, sizes, given_sizes, group=self.group)

    def _received(self, like: Tensor, size: int) -> Tensor:
        """Memory for what is received. It is used again, since sums run one after another: new pages would cost as much
        as the sum. A GPU's allocator keeps its pages itself."""
        if like.is_cuda:
            return like.new_empty(size)
        space = self.spaces.get(like.dtype)
        if space is None or space.numel() < size:
            space = self.spaces[like.dtype] = like.new_empty(size)
        return space[:size]


def _by_destination(values: Sequence[Tensor], members: int, chunk: int) -> Tensor:
    """The values in the order of the members that get them: member 0's chunk of every value, then member 1's, and so
    on. The last chunk is filled up with zeros."""
    n = values[0].numel()
    if len(values) == 1 and n == members * chunk:
        return values[0]
    out = values[0].new_zeros(len(values), members * chunk)
    for row, value in zip(out, values, strict=True):
        row[:n].copy_(value)
    return out.view(len(values), members, chunk).transpose(0, 1).reshape(-1)


def level_sizes(places: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Members of a group by level, the innermost first. Where a machine's ranks are neighbours, the first level stays
    inside the machines: a machine is one group, or with machines of 8 and 4 ranks, each four ranks are one.

    Args:
        places: by rank, its place on its machine and the number of ranks there.
    """
    inside = at = 0
    while at < len(places):
        here = places[at][1]
        if list(places[at : at + here]) != [(place, here) for place in range(here)]:
            return _split(len(places))
        inside, at = gcd(inside, here), at + here
    return (inside, *_split(len(places) // inside)) if 1 < inside < len(places) else _split(len(places))


@cache
def _split(members: int) -> tuple[int, ...]:
    """The sizes with that product whose levels need the fewest messages."""
    divided = [(size, *_split(members // size)) for size in range(2, isqrt(members) + 1) if members % size == 0]
    return min([(members,), *divided], key=lambda sizes: sum(sizes) + _LEVEL * len(sizes))
