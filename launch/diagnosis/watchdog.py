"""The watchdog: sees from outside that no rank goes forward any more, and which of them is the odd one.

A rank that says how far it is (our trainer, through rank/heartbeat.py) has a deadline for each phase. Of any other
program only what its processes do is known: collectives begun, processor time, bytes read and written. It is declared
hung when all ranks are past their deadlines, on all nodes: one that still works holds up the others rightly.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.records import RankRecord

from ..processes import family_tree
from .activity import Activity, activity
from .evidence import Evidence, Heartbeat, gather, read_heartbeat
from .nodes import Nodes
from .stragglers import Stragglers

STEP = 10.0
"""Seconds that a step may take at least; five times the slowest recent one where that is more."""
TIMES = 5.0
PHASES = {"init": 600.0, "connect": 300.0, "compile": 1800.0}
PHASES |= {"step": STEP, "evaluate": 300.0, "save": 1800.0, "end": 600.0}
"""Deadlines of our trainer, in seconds since its last sign of going forward. A save in the background may be waited for
for a quarter of an hour, a compilation takes what it takes. Connecting takes seconds, once the last rank has come, and
until that one has, it is in another phase."""
WORKING = ("init", "compile")
"""Phases in which it is going forward that the processes do anything at all: downloads, imports, compilers. Connecting
is none: NCCL looks around for its peers as busily as others compute."""
IDLE = 60.0
"""Deadline of another program whose processes do nothing: its long save can't be told from a stuck one."""
BUSY_TIMES = 30.0
"""How much longer it may compute without a collective: a long evaluation by one rank looks the same as an endless loop.
Half an hour by default, after which torch's own time limit would end it."""
BEFORE_COLLECTIVES = 1800.0
"""Deadline before the first collective: it may be no distributed program at all."""
LONGEST_GAP = 1.0
"""Seconds that count between two looks at most: more means that we were stopped, and the ranks with us."""
NEXT_ACTIVITY = 1.0


@dataclass
class _Quiet:
    """How long a rank has given no sign."""

    heartbeat: Heartbeat
    active: Activity
    idle: float = 0.0
    """Seconds without anything that counts."""
    same: float = 0.0
    """Seconds without a beat or a collective."""
    gap: float = 0.0
    """Seconds of the slowest recent gap between collectives."""

    def pass_by(self, heartbeat: Heartbeat, seconds: float) -> None:
        """Time goes by, and a sign of going forward ends the quiet."""
        if heartbeat.signs != self.heartbeat.signs:
            if self.heartbeat.total:  # what comes before the first is no gap between two
                self.gap = max(self.same, 0.9 * self.gap)
            self.heartbeat, self.idle, self.same = heartbeat, 0.0, 0.0
        else:
            self.idle += seconds
            self.same += seconds


@dataclass(frozen=True, kw_only=True)
class Hang:
    """What was found, before anything was ended."""

    seconds: float
    usual: float | None
    """Seconds of the slowest recent step, where steps are known."""
    evidence: list[Evidence]
    stacks: Path


class Watchdog:
    """Looks at the ranks of this node, a few times a second.

    Args:
        limit: seconds that take the place of 10 (a step) and 60 (another program), None: defaults; 0: off.
        nodes: this and the others, whose ranks may rightly hold up ours.
    """

    def __init__(self, generation: GenerationDir, limit: float | None, nodes: Nodes) -> None:
        self._generation, self._limit, self._nodes = generation, limit, nodes
        self._quiet: dict[int, _Quiet] = {}
        self._stragglers = Stragglers()
        self._looked = time.monotonic()
        self._measured = 0.0
        self._all_stopped = False
        """Somebody stopped the whole job, and will let it go on."""

    def look(self, alive: Sequence[RankRecord], ended: Sequence[RankRecord]) -> Hang | None:
        """`alive` are the ranks that run, `ended` those that have ended well."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LONGEST_GAP), now
        if self._limit == 0 or not alive:
            return None
        hearts = {record.rank: read_heartbeat(self._generation, record.rank) for record in alive}
        since, seen = now - self._measured, {}
        if since >= NEXT_ACTIVITY or not hearts.keys() <= self._quiet.keys():
            children, self._measured = family_tree(), now
            seen = {record.rank: activity(record.pid, children, hearts[record.rank].monitor) for record in alive}
            self._all_stopped = all(active.state == "T" for active in seen.values())
            self._quiet = {rank: self._quiet.get(rank) or _Quiet(hearts[rank], seen[rank]) for rank in hearts}
        for rank, heartbeat in hearts.items():
            self._quiet[rank].pass_by(heartbeat, 0.0 if self._all_stopped else passed)
        self._see_work(seen, min(since, 2 * NEXT_ACTIVITY))
        here = len(alive) == len(self._quiet) and all(self._is_over(quiet) for quiet in self._quiet.values())
        if self._nodes.all_are_quiet(here) or (here and self._waited_for_all()):
            return self._declare(alive, ended)
        return None

    def _waited_for_all(self) -> bool:
        """For as long as any phase of a rank elsewhere may take, whatever the other nodes say."""
        return all(quiet.idle > max(PHASES.values()) for quiet in self._quiet.values())

    def slow_ranks(self) -> list[str]:
        """What there is to say of ranks that the others wait for, while all goes on."""
        return self._stragglers.look({rank: quiet.heartbeat for rank, quiet in self._quiet.items()})

    def _see_work(self, seen: Mapping[int, Activity], since: float) -> None:
        """A rank that works is not idle. Waiting for a GPU can look like work; only ranks that others may wait for are
        given the time."""
        fewest = min(quiet.heartbeat.total for quiet in self._quiet.values())
        for rank, active in seen.items():
            quiet = self._quiet[rank]
            works, quiet.active = active.did_something_since(quiet.active, since), active
            if works and quiet.heartbeat.total == fewest and quiet.heartbeat.phase in ("unknown", *WORKING):
                quiet.idle = 0.0

    def _is_over(self, quiet: _Quiet) -> bool:
        heartbeat, phase = quiet.heartbeat, quiet.heartbeat.phase
        if phase == "unknown":
            together = any(other.heartbeat.total for other in self._quiet.values())
            least = self._limit or IDLE
            limit = max(least, TIMES * quiet.gap if together else BEFORE_COLLECTIVES)
            endless = together and quiet.same > BUSY_TIMES * limit
            return endless or quiet.idle > limit
        limit = self._limit or STEP if phase == "step" else max(self._limit or 0.0, PHASES[phase])
        if phase in ("step", "evaluate"):
            limit = max(limit, TIMES * heartbeat.slowest)
        return quiet.idle > limit

    def _declare(self, alive: Sequence[RankRecord], ended: Sequence[RankRecord]) -> Hang:
        evidence = self._nodes.gather(gather(self._generation, alive, ended))
        steps = [quiet.heartbeat.slowest for quiet in self._quiet.values() if quiet.heartbeat.phase == "step"]
        return Hang(
            seconds=min(quiet.same for quiet in self._quiet.values()),
            usual=max(steps, default=0.0) or None,
            evidence=evidence,
            stacks=self._generation.stacks,
        )
