"""Where a rank's time goes. What runs a step ends laps: the time since the lap before was spent in this phase.

On a CPU a lap ends when the host's clock says so. On a GPU it ends when the stream gets there: an event is recorded,
and read with the losses of the interval, when it has long passed, so that the host never waits for it. What a GPU waits
for, such as a loader on the host, is then in the phase in which it stands still.
"""

import os
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dist_train.report.budget import COLUMNS, MEDIANS, PHASES, STAGES
from dist_train.report.budget import EACH as OF_A_MICROBATCH


def queued_s() -> float:
    """Seconds in which the calling thread would have run if a core had been free; 0 where the kernel does not count
    them. The second number of schedstat: see the kernel's Documentation/scheduler/sched-stats.rst."""
    with suppress(OSError, ValueError, IndexError):
        own = getattr(_OF_THREAD, "schedstat", None)
        if own is None or own.thread != threading.get_native_id():  # of the process that this one was forked from
            own = _OF_THREAD.schedstat = _Schedstat()
        return int(os.pread(own.descriptor, 64, 0).split()[1]) / 1e9
    return 0.0


class _Schedstat:
    """The calling thread's file, which is read in each step, and closed when the thread ends."""

    def __init__(self) -> None:
        self.thread = threading.get_native_id()
        self.descriptor = os.open(f"/proc/self/task/{self.thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with suppress(AttributeError):  # there was no such file
            os.close(self.descriptor)


_OF_THREAD = threading.local()


class _Lap(NamedTuple):
    """What it was spent in, when it ended, and queued_s() then, where that is asked for."""

    phase: str
    end: Any
    queued: float | None


class NullTiming:
    """Where nobody asks."""

    def lap(self, phase: str) -> None:
        """The time since the last lap was spent in `phase`; costs less than a microsecond, on a GPU a few."""

    def end_step(self, microbatches: int) -> None:
        """A step is over, with so many microbatches of this rank; what comes now belongs to the next one."""

    def add_loaded(self, seconds: Sequence[float], samples: int) -> None:
        """So many samples took so long to load, in seconds for each of STAGES."""

    def table(self, rank: int, world_size: int) -> Tensor:
        """Float64 [world_size · columns], zero but for this rank's place: the steps since the last call. To be called
        when the device has done them."""
        return torch.zeros(0, dtype=torch.float64)


class Timing(NullTiming):
    """One rank's. The first step of a session, which has everything that is done once, is left out."""

    def __init__(self, device: torch.device) -> None:
        self._is_on_host = device.type != "cuda"
        self._device = device
        self._free: list[Any] = []
        """Events that can be recorded again."""
        self._laps: list[_Lap] = []
        """Of the step that is going on."""
        self._steps: list[tuple[list[_Lap], int]] = []
        """Those that are over, with the number of microbatches."""
        self._before: Any = None
        self._queued = 0.0
        """queued_s() when this rank last had the others' sums."""
        self._is_first = True
        self._loaded = [0.0] * (len(STAGES) + 1)

    def lap(self, phase: str) -> None:
        if not self._is_on_host:
            self._laps.append(_Lap(phase, self._event(), None))
        else:  # asked for twice a step: from the others' sums to its own it is this rank's work that waits for a core
            queued = queued_s() if phase in ("backward", "exchange") else None
            self._laps.append(_Lap(phase, time.perf_counter(), queued))

    def _event(self) -> Any:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def end_step(self, microbatches: int) -> None:
        if self._is_first:
            self._is_first, self._before = False, self._laps[-1].end if self._laps else None
            self._queued = queued_s()
            self._loaded = [0.0] * len(self._loaded)
        else:
            self._steps.append((self._laps, microbatches))
        self._laps = []

    def add_loaded(self, seconds: Sequence[float], samples: int) -> None:
        self._loaded = [one + more for one, more in zip(self._loaded, (*seconds, samples), strict=True)]

    def table(self, rank: int, world_size: int) -> Tensor:
        table = torch.zeros(world_size, len(COLUMNS), dtype=torch.float64)
        steps, self._steps = self._steps, []
        loaded, self._loaded = self._loaded, [0.0] * len(self._loaded)
        if steps:
            table[rank] = torch.tensor(self._row(steps) + loaded, dtype=torch.float64)
        return table.view(-1)

    def _row(self, steps: list[tuple[list[_Lap], int]]) -> list[float]:
        """What COLUMNS has in front of what was loaded."""
        spent = [self._seconds(laps) for laps, _ in steps]
        count = sum(microbatches for _, microbatches in steps)
        sums = [sum(step[phase] for step in spent) for phase in PHASES]
        medians = []
        for phase in MEDIANS:
            shares = [n if phase in OF_A_MICROBATCH else 1 for _, n in steps]
            medians.append(statistics.median(step[phase] / n for step, n in zip(spent, shares, strict=True)))
        low = sorted(step["exchange"] for step in spent)[len(spent) // 4]
        return [len(steps), count, *sums, *medians, low]

    def _seconds(self, laps: list[_Lap]) -> dict[str, float]:
        spent = dict.fromkeys((*PHASES, "core"), 0.0)
        for phase, end, queued in laps:
            if queued is not None:
                spent["core"] += max(0.0, queued - self._queued) if phase == "backward" else 0.0
                self._queued = queued
            if self._before is not None:
                passed = end - self._before if self._is_on_host else self._before.elapsed_time(end) / 1000
                spent[phase] += passed
                if not self._is_on_host:
                    self._free.append(self._before)
            self._before = end
        return spent
