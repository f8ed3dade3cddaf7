"""What the watchdogs of several nodes tell each other, by files in generations/<g>/quiet/ of the shared run directory.

A rank may rightly wait for one on another node. So a node only says that its own ranks are past their deadlines, and
takes that back when they go on; when all nodes say so, it is a hang, and each adds what it knows of its ranks.
Where the run directory is not shared, nobody hears of it, and the longest deadline is what is left.
"""

import time
from contextlib import suppress
from dataclasses import dataclass

from dist_train.rundir.codec import read_records, write_json
from dist_train.rundir.layout import GenerationDir

from .evidence import Evidence

LOOK_S = 1.0
SETTLED_S = 3.0
"""Seconds for which all have to say so: one may be about to take it back."""
OTHERS_WRITE_S = 10.0
"""Seconds for the others to write what they know."""


@dataclass(frozen=True, kw_only=True)
class NodeEvidence:
    """What one node knows of its ranks."""

    ranks: list[Evidence]


class Nodes:
    """This node and the others.

    Args:
        name: of this node, different from the others'.
        count: how many there are.
    """

    def __init__(self, generation: GenerationDir, name: str, count: int) -> None:
        self._generation, self._name, self._count = generation, name, count
        self._says_so = False
        self._next, self._since = 0.0, float("inf")

    def all_are_quiet(self, this_one: bool) -> bool:
        """Says whether this node is, and returns whether all are, for long enough."""
        if self._count == 1:
            return this_one
        if this_one != self._says_so:
            self._say(this_one)
        now = time.monotonic()
        if not this_one:
            self._since = float("inf")
        elif now >= self._next:
            self._next = now + LOOK_S
            quiet = len(list(self._generation.quiet.glob("[!.]*.json"))) >= self._count
            self._since = min(self._since, now) if quiet else float("inf")
        return now - self._since >= SETTLED_S

    def _say(self, quiet: bool) -> None:
        mine = self._generation.quiet / f"{self._name}.json"
        with suppress(OSError):  # the disk is full: the longest deadline is left
            self._generation.quiet.mkdir(exist_ok=True)
            if quiet:
                write_json(mine, {"node": self._name})
            else:
                mine.unlink(missing_ok=True)
            self._says_so = quiet

    def gather(self, mine: list[Evidence]) -> list[Evidence]:
        """All ranks', as far as their nodes write it down in time; `mine` comes first where one is on both."""
        if self._count == 1:
            return mine
        folder = self._generation.evidence
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{self._name}.json", NodeEvidence(ranks=mine))
        deadline = time.monotonic() + OTHERS_WRITE_S
        # Counted by their names: each node reads those of all, and so does it once.
        while len(list(folder.glob("[!.]*.json"))) < self._count and time.monotonic() < deadline:
            time.sleep(0.1)
        known = {one.rank: one for node in read_records(NodeEvidence, folder) for one in node.ranks}
        known |= {one.rank: one for one in mine}
        return [known[rank] for rank in sorted(known)]
