"""The watchdog: sees from outside that no rank goes forward any more, and which of them is the odd one.

A rank that says how far it is (our trainer, through rank/heartbeat.py) has a deadline for each phase. Of any other
program only what its processes do is known: collectives begun, processor time, bytes read and written. It is declared
quiet when all ranks are past their deadlines, on all nodes: one that still works holds up the others rightly. That is
told at once. It is hung, and ended, once it has been quiet for a longer time: a slow disk or a long computation ends no
healthy run.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.records import RankRecord

from ..processes import family_tree
from ..rank.page import Pages
from .activity import Activity, activity
from .evidence import Evidence, Heartbeat, gather_evidence, read_heartbeat
from .nodes import Nodes

STEP = 10.0
"""Seconds that a step may take at least; five times the slowest recent one where that is more."""
TIMES = 5.0
PHASES = {"init": 600.0, "connect": 300.0, "compile": 1800.0}
PHASES |= {"step": STEP, "evaluate": 300.0, "save": 1800.0, "callback": 300.0, "end": 600.0}
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
END_S = 300.0
"""Seconds without a sign after which a training that is quiet is ended. Another program is not, unless it is asked for:
what it does is not known."""
WORKING_TIMES = 4.0
"""How much longer it may take while a process of a rank computes, reads or writes, or waits for a disk (state D)."""
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
    is_over: bool
    """It has lasted for so long that it is to be ended; else it is only told."""
    ends_after: float | None
    """Seconds without a sign of going forward after which it is ended; None for never."""


def _activities(alive: Sequence[RankRecord], hearts: Mapping[int, Heartbeat]) -> dict[int, Activity]:
    children = family_tree()
    return {record.rank: activity(record.pid, children, hearts[record.rank].aside) for record in alive}


class Watchdog:
    """Looks at the ranks of this node, a few times a second.

    Args:
        pages: of the ranks.
        limit: seconds after which it is ended, None: defaults; 0: off.
        nodes: this and the others, whose ranks may rightly hold up ours.
    """

    def __init__(self, generation: GenerationDir, pages: Pages, limit: float | None, nodes: Nodes) -> None:
        self._generation, self._pages, self._limit, self._nodes = generation, pages, limit, nodes
        self._quiet: dict[int, _Quiet] = {}
        self._looked = time.monotonic()
        self._measured = 0.0
        self._all_stopped = False
        """Somebody stopped the whole job, and will let it go on."""
        self._is_told = False
        """That it is quiet."""
        self._worked = 0.0
        """When a process of a rank was last seen at work."""

    def look(self, alive: Sequence[RankRecord], ended: Sequence[RankRecord]) -> Hang | None:
        """What keeps all ranks from going on: once when that is first seen, and again when it is over.

        Args:
            alive: the ranks that run.
            ended: those that have ended well.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LONGEST_GAP), now
        if self._limit == 0 or not alive:
            return None
        hearts = {record.rank: read_heartbeat(self._pages.head(record.local_rank)) for record in alive}
        since, seen = now - self._measured, {}
        if since >= NEXT_ACTIVITY or not hearts.keys() <= self._quiet.keys():
            seen, self._measured = _activities(alive, hearts), now
            self._all_stopped = all(active.state == "T" for active in seen.values())
            self._quiet = {rank: self._quiet.get(rank) or _Quiet(hearts[rank], seen[rank]) for rank in hearts}
        for rank, heartbeat in hearts.items():
            self._quiet[rank].pass_by(heartbeat, 0.0 if self._all_stopped else passed)
        self._see_work(seen, min(since, 2 * NEXT_ACTIVITY))
        here = len(alive) == len(self._quiet) and all(self._is_quiet(quiet) for quiet in self._quiet.values())
        self._is_told = self._is_told and here
        if not (self._nodes.all_are_quiet(here) or (here and self._waited_for_all())):
            return None
        is_over = all(quiet.idle > self._end_of(quiet) for quiet in self._quiet.values())
        if self._is_told and not is_over:
            return None
        self._is_told = True
        hang = self._declare(alive, ended, is_over)
        for rank, active in _activities(alive, hearts).items():  # to write down their stacks was none of their work
            self._quiet[rank].active = active
        self._worked += time.monotonic() - now
        self._measured = time.monotonic()
        return hang

    def _end_of(self, quiet: _Quiet) -> float:
        """Seconds of quiet after which a rank's program is ended."""
        if quiet.heartbeat.phase == "unknown":
            return 0.0 if self._limit else float("inf")
        end = max(self._limit or END_S, self._deadline(quiet))
        # Ten looks at what they do, and not one: we may be slow ourselves.
        is_at_work = self._limit is None and time.monotonic() - self._worked < 10 * NEXT_ACTIVITY
        return WORKING_TIMES * end if is_at_work else end

    def _waited_for_all(self) -> bool:
        """For as long as any phase of a rank elsewhere may take, whatever the other nodes say."""
        return all(quiet.idle > max(PHASES.values()) for quiet in self._quiet.values())

    def _see_work(self, seen: Mapping[int, Activity], since: float) -> None:
        """A rank that works is not idle. Waiting for a GPU can look like work; only ranks that others may wait for are
        given the time."""
        fewest = min(quiet.heartbeat.total for quiet in self._quiet.values())
        for rank, active in seen.items():
            quiet = self._quiet[rank]
            works, quiet.active = active.did_something_since(quiet.active, since), active
            # What was done before it fell silent is none: the step itself, or its end.
            if quiet.idle > since and (active.state == "D" or (works and quiet.heartbeat.total == fewest)):
                self._worked = time.monotonic()
            if works and quiet.heartbeat.total == fewest and quiet.heartbeat.phase in ("unknown", *WORKING):
                quiet.idle = 0.0

    def _is_quiet(self, quiet: _Quiet) -> bool:
        if quiet.heartbeat.phase == "unknown":
            together = any(other.heartbeat.total for other in self._quiet.values())
            least = self._limit or IDLE
            limit = max(least, TIMES * quiet.gap if together else BEFORE_COLLECTIVES)
            endless = together and quiet.same > BUSY_TIMES * limit
            return endless or quiet.idle > limit
        return quiet.idle > self._deadline(quiet)

    def _deadline(self, quiet: _Quiet) -> float:
        """Seconds for a sign of going forward, of a training."""
        heartbeat, phase = quiet.heartbeat, quiet.heartbeat.phase
        limit = min(self._limit or STEP, STEP) if phase == "step" else max(self._limit or 0.0, PHASES[phase])
        return max(limit, TIMES * heartbeat.slowest) if phase in ("step", "evaluate") else limit

    def _declare(self, alive: Sequence[RankRecord], ended: Sequence[RankRecord], is_over: bool) -> Hang:
        evidence = self._nodes.gather(gather_evidence(self._generation, self._pages, alive, ended))
        steps = [quiet.heartbeat.slowest for quiet in self._quiet.values() if quiet.heartbeat.phase == "step"]
        return Hang(
            seconds=min(quiet.same for quiet in self._quiet.values()),
            usual=max(steps, default=0.0) or None,
            evidence=evidence,
            stacks=self._generation.stacks,
            is_over=is_over,
            ends_after=None if (end := max(map(self._end_of, self._quiet.values()))) == float("inf") else end,
        )
