"""Signals that this process has received: a handler notes them and does nothing else."""

import select
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Save and stop."""
OTHERS = (signal.SIGUSR2,)
"""Passed on to the ranks: save and go on."""
_DEADLY = (signal.SIGUSR1, signal.SIGUSR2)
_FORCING = (signal.SIGINT, signal.SIGTERM)
_ECHO = 0.1
"""Seconds within which the same signal again is an echo: `timeout` and srun send theirs to process and group."""


class ReceivedSignals:
    """Collects this process's signals from its construction until it is closed.

    SIGHUP is kept out: a closed terminal does not end a training, whose output is in its logs anyway. SIGUSR1 and
    SIGUSR2 are ignored once it is closed: by default they would kill a launcher that has done what they ask for, and is
    about to say so by its exit code.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        """The first signal that asked to save and stop."""
        self.kill: int | None = None
        """The signal that asked to end everything at once."""
        self.since: float | None = None
        """When `stop` came, on the monotonic clock."""
        self._forced = False
        """Whether SIGINT or SIGTERM has come: the next one ends everything."""
        self._others: list[int] = []
        self._last: tuple[int, float] = (0, 0.0)
        self._previous: dict[int, object] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (*STOPS, *OTHERS):
            self._previous[number] = signal.signal(number, self._receive)
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes wait()
        self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def __enter__(self) -> "ReceivedSignals":
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if number in _DEADLY else handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float, also: Sequence[socket.socket] = ()) -> None:
        """Returns when a signal has come, something else can be read, or the time is over."""
        if self._reader in select.select([self._reader, *also], [], [], seconds)[0]:
            self._reader.recv(4096)

    def take_others(self) -> list[int]:
        """Signals to pass on since the last call."""
        taken, self._others = self._others, []
        return taken

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        echo = self._last[0] == number and now - self._last[1] < _ECHO
        self._last = (number, now)
        if echo:
            return
        if number in OTHERS:
            self._others.append(number)
            return
        if self._forced and number in _FORCING:
            self.kill = number
        self._forced = self._forced or number in _FORCING  # a SIGTERM that follows SIGUSR1 still lets the saving end
        self.stop, self.since = self.stop or number, self.since or now
