"""What the watchdog needs inside of a rank: a heartbeat in shared memory, and stacks that C code writes on a signal.

main.py loads this file by its path before the program runs, so it imports the standard library alone. It costs a
thread that wakes once a second, and for a program that says how far it is, microseconds a step.
"""

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

MODULE = "_dist_train_heartbeat"
"""Under this name in sys.modules the program finds it, and needs no variable in its environment."""
SIGNAL = signal.SIGRTMIN + 8
"""Asks for stacks. No signal that programs, schedulers or libraries are known to use."""
PHASES = ("unknown", "init", "compile", "step", "evaluate", "save", "end", "connect", "callback")
RECORD = struct.Struct("<qqqqdQq")
"""Beats, boot time of the last one in ns, phase, step, seconds of the slowest recent beat, ident of the main thread,
the rank's descriptor of the file that its stacks go to."""
ASIDE, ASIDE_AT = struct.Struct("<16q"), 128
"""Ids of threads and of child processes that are as busy in a rank that is stuck; 0 for none."""
COUNTS_AT, COUNTS_END = 256, 2048
"""After which launch/rank/collectives.py has the rest of the page."""
RECENT = 100
"""Beats of one phase that `slowest recent` looks back on."""


class HeartbeatWriter:
    """One rank's.

    Args:
        memory: the rank's page (page.py).
        log_of: makes the log of collectives in a page (collectives.py).
    """

    def __init__(self, memory: mmap.mmap, log_of: Callable[[mmap.mmap], Any]) -> None:
        # In C, so it answers while native code holds the GIL. Forked children inherit handler and file, others open it.
        stacks = os.memfd_create("dist-train-stacks", os.MFD_CLOEXEC)
        self.stacks, self.signal = f"/proc/{os.getpid()}/fd/{stacks}", SIGNAL
        self._stacks = open(self.stacks, "a")  # noqa: SIM115 - for the process's life
        faulthandler.register(SIGNAL, file=self._stacks, all_threads=True)
        self._memory, self._stacks_file = memory, stacks
        self._beats, self._phase = 0, ""
        self._last = time.monotonic()
        self._took: dict[str, deque[float]] = {}
        self._main = threading.main_thread().ident or 0
        self._calls = log_of(self._memory)
        self._logs_calls = self._calls.begin()
        thread = threading.Thread(target=self._count, name="watchdog", daemon=True)
        thread.start()
        self._aside = deque(16 * [0], maxlen=16)
        self.set_aside(thread.native_id or 0)
        self._write(0)

    def beat(self, phase: str, step: int) -> None:
        """The program is in `phase` of `step` and goes forward. The first beat of a phase measures nothing."""
        now = time.monotonic()
        took = self._took.setdefault(phase, deque(maxlen=RECENT))
        if phase == self._phase:
            took.append(now - self._last)
        self._phase, self._last = phase, now
        self._beats += 1
        self._write(step)

    def _write(self, step: int) -> None:
        number = PHASES.index(self._phase) if self._phase else 0
        slowest = max(self._took.get(self._phase, ()), default=0.0)
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        RECORD.pack_into(self._memory, 0, self._beats, boot, number, step, slowest, self._main, self._stacks_file)

    def set_aside(self, number: int) -> None:
        """What this thread, or this child process with those below it, does is no work of the rank's."""
        self._aside.append(number)
        ASIDE.pack_into(self._memory, ASIDE_AT, *self._aside)

    def _count(self) -> None:
        """Once a second: how many collectives each process group has begun, whoever called them."""
        while True:
            time.sleep(1)
            with contextlib.suppress(Exception):  # torch in the middle of its import, a group that is being destroyed
                self._logs_calls = self._logs_calls or self._calls.begin()
                text = json.dumps(collectives()).encode()[: COUNTS_END - COUNTS_AT - 1]
                self._memory[COUNTS_AT : COUNTS_AT + len(text) + 1] = text + b"\n"


def collectives() -> dict[str, int]:
    """By name of process group, the number of collectives begun; DDP's own are among them."""
    module: Any = sys.modules.get("torch.distributed.distributed_c10d")
    world = getattr(module, "_world", None)
    if world is None:
        return {}
    return {str(world.pg_names[group]): group._get_sequence_number_for_group() for group in list(world.pg_map)}


def install(memory: mmap.mmap, log_of: Callable[[mmap.mmap], Any]) -> None:
    """Begins. A rank without it works as well, so nothing here ends one."""
    with contextlib.suppress(OSError, ValueError):
        sys.modules[MODULE] = HeartbeatWriter(memory, log_of)  # type: ignore[assignment]
