"""Stands between the ranks of a node and its console and logs: `python -m launch.relay.main`, a process of its own.

A rank asks on a socket, and is given what its file descriptors 1 and 2 become: a terminal of its own where the launcher
has one, else a pipe. So all that it prints comes here, native code and child processes included, and is still here when
the rank is gone. Each log gets everything. The console gets the ranks that are shown, and is never waited for.

The supervisor says on stdin what is wanted, then what it has to say itself, and closes it when no more ranks will come.
"""

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import termios
import time
import tty
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dist_train.rundir.codec import decode

from .lines import Lines
from .request import STDERR, STDOUT, RelayRequest
from .targets import Console, LogFile

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
TICK_S = 0.5
"""Between two looks at the console's size and at what has waited."""
SETTLED_S = 5.0
"""Without output, after which a line that has not ended is written to the log as it is."""
ROUNDS = 16
"""Reads in a row from one rank, so that one that prints without end leaves room for the others."""
LAST_WORDS_S = 3.0
"""For the output of processes that outlive the launch; what they print later goes to the logs alone."""
STUCK_CONSOLE_S, SLOW_CONSOLE_S = 1.0, 5.0
"""In the end, for a console that accepts nothing, and for one that accepts something."""

Take = Callable[[bytes], None]
Follow = Callable[[], None]


def main() -> None:
    for number in IGNORED:  # it ends when all that it reads from has
        signal.signal(number, signal.SIG_IGN)
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    if not line:  # the supervisor has gone already
        return
    request = decode(RelayRequest, json.loads(line))
    relay = Relay(request)
    relay.run(socket.socket(fileno=request.listener))
    for console in relay.consoles:
        console.end_line()
        console.drain(STUCK_CONSOLE_S, SLOW_CONSOLE_S)
    os._exit(0)  # a thread may still wait for the console


def _nowhere(_: bytes) -> None:
    """The console that a program has which outlives the launch."""


class Stream:
    """One end of a pipe or terminal that a rank writes to.

    Args:
        log: what is read goes there.
        take: it goes there first.
        shown: lines that end with the stream.
        follow: called now and then while the stream is open.
    """

    def __init__(self, file: int, log: Lines, take: Take, shown: Lines | None, follow: Follow | None) -> None:
        self.file, self.log, self._take, self._shown, self._follow = file, log, take, shown, follow
        self._waits_since: float | None = None
        os.set_blocking(file, False)

    def read(self) -> bool:
        """Takes what is there. False when no process can write to it any more."""
        for _ in range(ROUNDS):
            try:
                data = os.read(self.file, 65_536)
            except BlockingIOError:
                return True
            except OSError:  # EIO: how a terminal says that its last writer is gone
                data = b""
            if not data:
                return False
            self._take(data)
            self.log.feed(data)
            self._waits_since = time.monotonic()
        return True

    def tick(self) -> None:
        """Writes to the log what has waited there for long."""
        if self._waits_since is not None and time.monotonic() - self._waits_since > SETTLED_S:
            self._waits_since = None
            self.log.settle()
        if self._follow is not None:
            self._follow()

    def leave_console(self) -> None:
        """From now on the log alone gets what is read."""
        if self._shown is not None:
            self._shown.close()
        self._take, self._shown, self._follow = _nowhere, None, None

    def close(self) -> None:
        if self._shown is not None:
            self._shown.close()
        self.log.close()
        os.close(self.file)


class Rank:
    """What one rank writes to, in the order in which it is read: stdout, stderr, what is for the log alone."""

    def __init__(self, log: LogFile) -> None:
        self.log = log
        self.streams: list[Stream] = []

    def end_lines(self, _: bytes) -> None:
        """Ends the lines that the first streams have begun, before something goes to the log alone."""
        for stream in self.streams[:-1]:
            stream.log.close()


class Relay:
    """All ranks of this node."""

    def __init__(self, request: RelayRequest) -> None:
        self._request = request
        self._out = self._err = Console(1)
        if not os.path.sameopenfile(1, 2):
            self._err = Console(2)
        self.consoles = list(dict.fromkeys([self._out, self._err]))
        self._selector = selectors.DefaultSelector()
        self._ranks: list[Rank] = []

    def run(self, listener: socket.socket) -> None:
        """Until stdin is closed and no rank's output is open; or nothing comes any more, LAST_WORDS_S later at most."""
        until: float | None = None
        self._selector.register(0, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)
        ready: dict[int, Any] = {}
        while until is None or (self._ranks and ready and time.monotonic() < until):
            ready = self._turn()
            if listener.fileno() in ready:
                self._welcome(listener)
            if 0 not in ready:
                continue
            if message := os.read(0, 65_536):  # the supervisor's, among the ranks' lines
                self._err.write_lines(message.decode(errors="replace"))
            else:
                self._selector.unregister(0)
                until = time.monotonic() + LAST_WORDS_S
        self._selector.unregister(listener)
        for stream in self._streams:
            stream.leave_console()
        if not self._ranks or os.fork() > 0:
            return
        # What the program has left behind, in sessions of their own as this process: their output goes to the logs.
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):  # who reads our output waits for its end
            os.dup2(nowhere, number)
        while self._ranks:
            self._turn()
        os._exit(0)

    @property
    def _streams(self) -> list[Stream]:
        return [stream for rank in self._ranks for stream in rank.streams]

    def _turn(self) -> dict[int, Any]:
        """Waits for output, and reads what there is. Returns what was ready."""
        ready = {key.fd: key.data for key, _ in self._selector.select(TICK_S)}
        for rank in [rank for rank in self._ranks if rank in ready.values()]:
            self._read(rank)
        for stream in self._streams:
            stream.tick()
        return ready

    def _read(self, rank: Rank) -> None:
        """One round over a rank's streams in their order: what it said before an error comes before it."""
        for stream in [*rank.streams]:
            if not stream.read():
                self._close(rank, stream)

    def _close(self, rank: Rank, stream: Stream) -> None:
        self._selector.unregister(stream.file)
        rank.streams.remove(stream)
        stream.close()
        if not rank.streams:
            rank.log.close()
            self._ranks.remove(rank)

    # ------------------------------------------------------------ a new rank

    def _welcome(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), listener.accept()[0] as asking:
            asking.settimeout(LAST_WORDS_S)
            pid, user, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user != os.getuid():
                return
            asked = json.loads(asking.recv(65_536))
            ends = self._connect(asked["rank"], asked["local_rank"], Path(asked["log"]), pid)
            try:
                socket.send_fds(asking, [b"."], ends)
            finally:
                for end in set(ends):
                    os.close(end)

    def _connect(self, rank: int, local_rank: int, path: Path, pid: int) -> list[int]:
        """Returns the ends for a rank's stdout, its stderr and its log alone."""
        joined = Rank(LogFile(path, self._request.limit))
        self._ranks.append(joined)
        streams = self._request.shown.streams(rank, local_rank)
        prefix = self._request.shown.prefix_of(rank, local_rank)
        consoles = [self._out if streams & STDOUT else None, self._err if streams & STDERR else None]
        wanted = dict.fromkeys(console for console in consoles if console is not None)
        ends = {console: self._show(joined, rank, prefix, console, pid) for console in wanted}
        reading, log = os.pipe()
        self._add(joined, reading, joined.end_lines)
        return [*(ends[console] if console else log for console in consoles), log]

    def _show(self, joined: Rank, rank: int, prefix: str, console: Console, pid: int) -> int:
        """The end for a stream that goes to the console too.

        The relays of several nodes may write to one console, through terminals of srun: only whole lines can be told
        apart there.
        """
        is_alone = self._request.shown.is_rank0_alone or (console.is_terminal and self._request.nodes == 1)
        if rank == 0 and is_alone and not prefix:
            reading, writing, follow = open_terminal(console, pid) if console.is_terminal else (*os.pipe(), None)
            self._add(joined, reading, console.write, follow=follow)
        else:
            reading, writing = os.pipe()
            lines = Lines(partial(console.write_lines, prefix=prefix))
            self._add(joined, reading, lines.feed, lines)
        return writing

    def _add(self, rank: Rank, file: int, take: Take, shown: Lines | None = None, follow: Follow | None = None) -> None:
        rank.streams.append(Stream(file, Lines(rank.log.write), take, shown, follow))
        self._selector.register(file, selectors.EVENT_READ, rank)


# ---------------------------------------------------------------- terminals


def open_terminal(console: Console, pid: int) -> tuple[int, int, Follow | None]:
    """The two ends of a terminal like the console's, which passes on what is written as it is, and what keeps it of the
    console's size; a pipe where there are no terminals."""
    try:
        reading, writing = os.openpty()
    except OSError:
        return (*os.pipe(), None)
    tty.setraw(writing)
    with contextlib.suppress(OSError):
        fcntl.ioctl(reading, termios.TIOCSWINSZ, window_size(console.file))
        return reading, writing, partial(follow_size, reading, console, os.pidfd_open(pid))
    return reading, writing, None


def follow_size(terminal: int, console: Console, process: int) -> None:
    """When the console was resized, the rank's terminal is too, and the rank is told as by its own."""
    with contextlib.suppress(OSError):
        size = window_size(console.file)
        if size != window_size(terminal):
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
            signal.pidfd_send_signal(process, signal.SIGWINCH)


def window_size(terminal: int) -> bytes:
    return fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))


if __name__ == "__main__":
    main()
