"""The signals that the ranks of a generation get, when a stop was asked for or one of them has failed."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.records import RankRecord
from dist_train.rundir.runs import newest_checkpoint, shown_path

from ..console import mark
from ..diagnosis.activity import Activity, activity
from ..diagnosis.evidence import read_heartbeat
from ..diagnosis.watchdog import STEP, TIMES
from ..plan import LaunchPlan
from ..processes import catches, family_tree, send
from ..rank.page import Pages
from ..signals import ReceivedSignals
from .exit_watcher import agent_saw_a_failure, errors_of
from .other_nodes import NoOtherNodes

AFTER_FAILURE_S = 3.0
"""Seconds that the other ranks of a training have to end by themselves once one has failed, and after which the user is
told who is waited for."""
ENDING_S = 30.0
"""Seconds that a rank may take to end where no --grace is given, as with torch. What it does meanwhile may matter:
buffers, checkpoints in a thread, a handler of SIGTERM that saves."""
LOOK_S = 1.0
"""Seconds between two looks at what a rank does."""


def longest_end(plan: LaunchPlan) -> float:
    """Seconds that the ranks of a node may need to end: a failed one, and then the others."""
    return 2 * AFTER_FAILURE_S if plan.is_training else 2 * (plan.flags.grace or ENDING_S)


@dataclass
class _Ending:
    """A rank that is about to end."""

    since: float
    looked: float = 0.0
    seen: Activity | None = None
    """What it had done by then."""
    worked: float = field(default_factory=time.monotonic)
    """When it was last seen to do something."""
    is_told: bool = False


class Stopping:
    """Stops the ranks of one generation on this node.

    Args:
        say: shows the user a line while ranks may print.
        others: the other nodes of the generation.

    Attributes:
        ended_by_us: ranks that were killed because another had failed.
        is_out_of_time: a stop was asked for so long ago that the last checkpoint has to do.
        is_failing: a rank has failed, or a node has left, so that the others are about to end.
        is_abandoned: there is nothing to wait for: a node has left, and no rank is alive here.
        had_nothing_to_save: no rank had got as far as training when the stop was asked for.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        signals: ReceivedSignals,
        generation: GenerationDir,
        pages: Pages,
        say: Callable[[str], None],
        others: NoOtherNodes,
    ) -> None:
        self.plan, self.signals, self.generation, self.pages, self._say = plan, signals, generation, pages, say
        self.others, self.is_abandoned = others, False
        self.ended_by_us: set[int] = set()
        self.is_out_of_time = False
        self.had_nothing_to_save = False
        self._asked: set[int] = set()
        """Process ids of the ranks that were asked to stop."""
        self._is_announced = self._is_stuck_told = False
        self._deadline: float | None = None
        self._failing_since: float | None = None
        self._ending: dict[int, _Ending] = {}
        """Ranks that are about to end, by number."""

    @property
    def is_failing(self) -> bool:
        return self._failing_since is not None

    @property
    def is_forced(self) -> bool:
        """Whether everything is to end at once."""
        return self.signals.kill is not None or self.is_out_of_time

    def watch_the_time(self) -> None:
        """--grace: looks whether saving takes too long."""
        grace = self.plan.flags.grace
        if self.signals.stop is None or grace is None or self.is_out_of_time:
            return
        self._deadline = self._deadline or time.monotonic() + grace
        if time.monotonic() < self._deadline:
            return
        newest = newest_checkpoint(self.plan.folder)
        left = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
        kept = f"ended unsaved; {left}" if self.plan.is_training else "ended"
        self._say(f"{mark('!', 'yellow')} not stopped within {grace:g} s (--grace): {kept}")
        self.is_out_of_time = True

    def pass_on(self, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        """Sends the ranks what this process was sent, and ends those that a failed one would leave waiting."""
        if self.signals.stop is not None:
            self._stop(self.signals.stop, ranks, alive)
        for number in self.signals.take_others():
            for rank in alive:
                if catches(rank.pid, number):
                    send(rank.pid, number)
        self._end_those_left_waiting(ranks, alive)
        self._tell_of_no_progress(alive)

    def _tell_of_no_progress(self, alive: Sequence[RankRecord]) -> None:
        """Ranks save between two steps. One that takes long may still end, so the user is told, and decides."""
        hearts = [read_heartbeat(self.pages.head(rank.local_rank)) for rank in alive]
        quiet = [one.seconds for one in hearts if one.phase == "step" and one.seconds > max(STEP, TIMES * one.slowest)]
        is_asked = self._is_announced and self.plan.is_training and self.plan.node in (0, None)
        if not is_asked or not quiet or len(quiet) < len(hearts) or self._is_stuck_told:
            return
        self._is_stuck_told = True
        newest = newest_checkpoint(self.plan.folder)
        left = f"keeps the last checkpoint, {newest}" if newest else "there is no checkpoint to go on from"
        again = f"a second Ctrl-C (or `dist-train stop {shown_path(self.plan.folder)}` again) ends it now, and {left}"
        self._say(f"  no rank has finished a step for {min(quiet):.0f} s, so nothing can be saved yet; {again}")

    def _stop(self, number: int, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        """Sends the signal once to each rank. In a training, only ranks with a handler get it; in another program all
        do, as with torchrun. SIGUSR1 asks to be started again, and kills by default: a program without a handler gets
        SIGTERM."""
        is_training = self.plan.is_training
        for pid in [rank.pid for rank in alive if rank.pid not in self._asked]:
            if catches(pid, number) or not is_training:
                self._ask(pid, signal.SIGTERM if number == signal.SIGUSR1 and not catches(pid, number) else number)
        if self._asked and not self._is_announced:
            self._say(f"  {'saving, then ' * is_training}stopping … once more to kill at once")
            self._is_announced = True
        elif not self._asked and (alive or not ranks):  # nobody has got as far as training: there is nothing to save
            self.signals.kill, self.had_nothing_to_save = number, is_training

    def _ask(self, pid: int, number: int) -> None:
        """Sends a rank a signal. In a program that is not ours, SIGINT and SIGTERM also go to what the rank has
        started, as with torchrun. Other signals kill whoever has no handler, so the rank alone gets them."""
        self._asked.add(pid)
        group = not self.plan.is_training and number in (signal.SIGINT, signal.SIGTERM)
        send(pid, number, group=group)

    def _has_failed_elsewhere(self) -> bool:
        """Whether a rank of another node has written why it ended."""
        with suppress(OSError):
            return self.plan.nodes > 1 and any(self.generation.errors.iterdir())
        return False

    def _end_those_left_waiting(self, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        """Once a rank has failed, first it and then the others get time to end. Those that do not use it are killed."""
        failed = {error.rank for error in errors_of(self.pages)}
        if self.plan.is_training:
            is_gone = any(rank not in alive and rank.ended != 0 for rank in ranks)
        else:  # another program may be in a rank's place, or leave without a word
            is_gone = agent_saw_a_failure(self.pages)
        has_left = self.others.have_left(bool(ranks))
        self.is_abandoned = has_left and not ranks
        if not is_gone and not has_left and not failed and not self._has_failed_elsewhere():
            return
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        waiting = [rank for rank in alive if rank.rank in failed] or alive
        is_late = now - self._failing_since >= AFTER_FAILURE_S
        self.is_abandoned = has_left and not alive and is_late
        if not self.plan.is_training and not any(rank.rank in failed for rank in alive) and (is_gone or is_late):
            for pid in [rank.pid for rank in alive if rank.pid not in self._asked]:
                self._ask(pid, signal.SIGTERM)
        self._ending = {rank.rank: self._ending.get(rank.rank) or _Ending(now) for rank in waiting}
        for rank in [one for one in waiting if self._has_had_its_time(one, one.rank in failed)]:
            self.ended_by_us.add(rank.rank)
            send(rank.pid, signal.SIGKILL, group=True)

    def _has_had_its_time(self, rank: RankRecord, has_failed: bool) -> bool:
        """Whether a rank that was about to end is to be killed. One that does nothing has half of the time: it will not
        end by itself."""
        ending, now = self._ending[rank.rank], time.monotonic()
        waited = now - ending.since
        if self.plan.is_training and not has_failed:  # it has nothing to save that the others have not
            return waited >= AFTER_FAILURE_S
        if now - ending.looked >= LOOK_S:
            aside = read_heartbeat(self.pages.head(rank.local_rank)).aside
            seen = activity(rank.pid, family_tree(), aside)
            does = ending.seen is None or seen.did_something_since(ending.seen, now - ending.looked)
            if does or seen.state == "D":  # or waits for a disk
                ending.worked = now
            ending.seen, ending.looked = seen, now
        limit = self.plan.flags.grace or ENDING_S
        if waited >= AFTER_FAILURE_S and not ending.is_told:
            ending.is_told = True
            doing = "has failed and is still ending" if has_failed else "is still ending"
            self._say(f"  rank {rank.rank} (pid {rank.pid}) {doing}: it has up to {limit:g} s (--grace)")
        return waited >= limit or now - ending.worked >= limit / 2
