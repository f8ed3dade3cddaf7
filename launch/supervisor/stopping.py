"""What the ranks of a generation are asked by signals, because somebody wants it or because one of them has failed."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.records import RankRecord
from dist_train.rundir.runs import newest_checkpoint

from ..console import mark
from ..plan import LaunchPlan
from ..processes import catches, send
from ..rank.page import Pages
from ..signals import ReceivedSignals
from .exit_watcher import errors_of
from .other_nodes import NoOtherNodes

AFTER_FAILURE_S = 3.0
"""Seconds that ranks have to end by themselves once one has failed."""


class Stopping:
    """Of one generation, on this node.

    Args:
        say: shows the user a line while ranks may print.
        others: the nodes that run it too.

    Attributes:
        ended_by_us: ranks that were killed because another had failed.
        is_out_of_time: a stop was asked for so long ago that the last checkpoint has to do.
        failing_since: when a rank was seen to have failed, or a node to have left, so that the others are about to end.
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
        self._is_announced = False
        self._deadline: float | None = None
        self.failing_since: float | None = None

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

    def _stop(self, number: int, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        """Of a training, the ranks that have a handler get the signal, once. Of a program, all do, as with torchrun.
        SIGUSR1 asks to be started again, and by default it kills: a program without a handler gets SIGTERM instead."""
        is_training = self.plan.is_training
        for pid in [rank.pid for rank in alive if rank.pid not in self._asked]:
            if catches(pid, number) or not is_training:
                self._asked.add(pid)
                send(pid, signal.SIGTERM if number == signal.SIGUSR1 and not catches(pid, number) else number)
        if self._asked and not self._is_announced:
            self._say(f"  {'saving, then ' * is_training}stopping … once more to kill at once")
            self._is_announced = True
        elif not self._asked and (alive or not ranks):  # nobody has got as far as training: there is nothing to save
            self.signals.kill, self.had_nothing_to_save = number, is_training

    def _has_failed_elsewhere(self) -> bool:
        """Whether a rank of another node has written why it ended."""
        with suppress(OSError):
            return self.plan.nodes > 1 and any(self.generation.errors.iterdir())
        return False

    def _end_those_left_waiting(self, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        """Once a rank has failed the others have a few seconds: torch's agent would wait for half a minute."""
        is_gone = any(rank not in alive and rank.ended != 0 for rank in ranks)
        has_left = self.others.have_left(bool(ranks))
        self.is_abandoned = has_left and not ranks
        if not is_gone and not has_left and not errors_of(self.pages) and not self._has_failed_elsewhere():
            return
        self.failing_since = self.failing_since or time.monotonic()
        if time.monotonic() - self.failing_since < AFTER_FAILURE_S:
            return
        self.is_abandoned = has_left and not alive
        for rank in alive:
            self.ended_by_us.add(rank.rank)
            send(rank.pid, signal.SIGKILL, group=True)
