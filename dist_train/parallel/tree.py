"""The one order in which microbatches are added: a fixed binary tree over their numbers.

A node is a range (a, b) of microbatch numbers; its children are (a, m) and (m, b) with m the middle. Floating-point
addition is commutative but not associative, so a sum along this tree is the same to the last bit however its leaves and
nodes are shared out, as long as every process adds along the tree.

A leaf is (k, k + 1). Of V = 8 microbatches on 3 ranks, the ranks' shares are the nodes (0, 2); (2, 4) and (4, 5);
(5, 6) and (6, 8). Any number of ranks adds ((0, 2) + (2, 4)) + (((4, 5) + (5, 6)) + (6, 8)).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Generic, TypeVar

Node = tuple[int, int]
T = TypeVar("T")


def children(node: Node) -> tuple[Node, Node]:
    middle = (node[0] + node[1]) // 2
    return (node[0], middle), (middle, node[1])


def cover(share: range, node: Node) -> list[Node]:
    """The largest nodes at or below `node` that lie inside `share`, from left to right: together they are the share."""
    if share.start <= node[0] and node[1] <= share.stop:
        return [node]
    if node[1] <= share.start or share.stop <= node[0]:
        return []
    left, right = children(node)
    return cover(share, left) + cover(share, right)


def tree_sum(values: Mapping[Node, T], node: Node, add: Callable[[T, T], T]) -> T:
    """The sum of `node` from the values of any set of nodes that covers it."""
    if node in values:
        return values[node]
    left, right = children(node)
    return add(tree_sum(values, left, add), tree_sum(values, right, add))


@lru_cache
def _siblings(root: Node) -> dict[Node, tuple[Node, Node]]:
    """For each right child: its left sibling and their parent."""
    if root[1] - root[0] == 1:
        return {}
    left, right = children(root)
    return {right: (left, root), **_siblings(left), **_siblings(right)}


class BinaryCounter(Generic[T]):
    """Adds a share's leaves as they come, keeping no more than log2 V partial sums: each is a node of the tree.

    Args:
        microbatches: V, the number of leaves.
        add: adds its second argument to its first, in place or not, and returns the sum.
    """

    def __init__(self, microbatches: int, add: Callable[[T, T], T]) -> None:
        self._siblings = _siblings((0, microbatches))
        self._add = add
        self.nodes: dict[Node, T] = {}

    def push(self, number: int, value: T) -> None:
        """Adds leaf `number`; leaves come in ascending order."""
        node = (number, number + 1)
        while node in self._siblings and self._siblings[node][0] in self.nodes:
            left, parent = self._siblings[node]
            node, value = parent, self._add(self.nodes.pop(left), value)
        self.nodes[node] = value

    def folding(self, number: int) -> tuple[list[Node], list[Node]]:
        """How leaf `number`, the share's last, is to be added. First the nodes that are added to it one after another,
        each a left sibling of the sum so far. Then the share's other nodes from left to right, all left of the
        result."""
        node, folded = (number, number + 1), []
        while node in self._siblings and self._siblings[node][0] in self.nodes:
            left, node = self._siblings[node]
            folded.append(left)
        return folded, sorted(set(self.nodes) - set(folded))
