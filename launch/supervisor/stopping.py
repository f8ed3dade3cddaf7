"""What the ranks of a generation are asked by signals, because somebody wants it or because one of them has failed."""

import signal
import time
from collections.abc import Callable, Sequence

from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.records import RankRecord
from dist_train.rundir.runs import newest_checkpoint
from launch.console import mark
from launch.plan import LaunchPlan
from launch.processes import catches, send
from launch.signals import ReceivedSignals

AFTER_FAILURE_S = 3.0
"""Seconds that ranks have to end by themselves once one has failed."""


class Stopping:
    """Of one generation, on this node.

    Args:
        say: shows the user a line while ranks may print.

    Attributes:
        ended_by_us: ranks that were killed because another had failed.
        is_out_of_time: a stop was asked for so long ago that the last checkpoint has to do.
        had_nothing_to_save: no rank had got as far as training when the stop was asked for.
    """

    def __init__(
        self, plan: LaunchPlan, signals: ReceivedSignals, generation: GenerationDir, say: Callable[[str], None]
    ) -> None:
        self._plan, self._signals, self._generation, self._say = plan, signals, generation, say
        self.ended_by_us: set[int] = set()
        self.is_out_of_time = False
        self.had_nothing_to_save = False
        self._asked: set[tuple[int, int]] = set()
        """Process ids and the signals that they were sent."""
        self._is_announced = False
        self._deadline: float | None = None
        self._failing_since: float | None = None

    @property
    def is_forced(self) -> bool:
        """Whether everything is to end at once."""
        return self._signals.kill is not None or self.is_out_of_time

    @property
    def has_failed(self) -> bool:
        """Whether a rank has failed, so that the others are about to end."""
        return self._failing_since is not None

    def watch_the_time(self) -> None:
        """--grace: looks whether saving takes too long."""
        if self._signals.stop is None or self._plan.grace is None or self.is_out_of_time:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + self._plan.grace
        if time.monotonic() < self._deadline:
            return
        newest = newest_checkpoint(self._plan.folder)
        left = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
        kept = f"ended unsaved; {left}" if self._plan.is_training else "ended"
        self._say(f"{mark('!', 'yellow')} not stopped within {self._plan.grace:g} s (--grace): {kept}")
        self.is_out_of_time = True

    def pass_on(self, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        """Sends the ranks what this process was sent, and ends those that a failed one would leave waiting."""
        stop = self._signals.stop
        if stop is not None and self._plan.is_training:
            self._stop_training(stop, ranks, alive)
        elif stop is not None:
            self._stop_program(stop, ranks, alive)
        for number in self._signals.take_others():
            self._ask(alive, number, again=True)
        self._end_those_left_waiting(ranks, alive)

    def _stop_training(self, number: int, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        if self._ask(alive, number) or self._asked:
            self._announce("  saving, then stopping … once more to kill at once")
        elif alive or not ranks:  # no rank has got as far as training: there is nothing to save
            self._signals.kill, self.had_nothing_to_save = number, True

    def _stop_program(self, number: int, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        """As torchrun does, the ranks get the signal. SIGUSR1 asks to be started again, and by default it kills: a
        program that does not handle it gets SIGTERM instead."""
        if not alive and not ranks:
            self._signals.kill = number
        for rank in alive:
            if (rank.pid, number) not in self._asked:
                self._asked.add((rank.pid, number))
                send(rank.pid, number if number != signal.SIGUSR1 or catches(rank.pid, number) else signal.SIGTERM)
        if alive:
            self._announce("  stopping … once more to kill at once")

    def _announce(self, text: str) -> None:
        if not self._is_announced:
            self._say(text)
        self._is_announced = True

    def _ask(self, alive: Sequence[RankRecord], number: int, *, again: bool = False) -> bool:
        """Sends the signal to the ranks that have a handler for it, once. Returns whether there was any."""
        ready = [rank.pid for rank in alive if catches(rank.pid, number)]
        for pid in ready:
            if again or (pid, number) not in self._asked:
                self._asked.add((pid, number))
                send(pid, number)
        return bool(ready)

    def _end_those_left_waiting(self, ranks: Sequence[RankRecord], alive: Sequence[RankRecord]) -> None:
        """Once a rank has failed the others have a few seconds: torch's agent would wait for half a minute."""
        is_gone = any(rank not in alive and rank.ended != 0 for rank in ranks)
        if not is_gone and not any(self._generation.errors.iterdir()):
            return
        self._failing_since = self._failing_since or time.monotonic()
        if time.monotonic() - self._failing_since < AFTER_FAILURE_S:
            return
        for rank in alive:
            self.ended_by_us.add(rank.rank)
            send(rank.pid, signal.SIGKILL, group=True)
