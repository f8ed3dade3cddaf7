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
import sys
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path

from dist_train.rundir.codec import decode
from launch.relay.lines import Lines
from launch.relay.request import RelayRequest
from launch.relay.targets import Console, LogFile

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
TICK = 0.5
"""Seconds between two looks at the console's size and at what has waited."""
SETTLED = 5.0
"""Seconds without output after which a line that has not ended is written to the log as it is."""
ROUNDS = 16
"""Reads in a row from one rank, so that one that prints without end leaves room for the others."""
LAST_WORDS = 3.0
"""Seconds that are given to the output of processes which outlive the launch."""
PATIENCE, AT_MOST = 1.0, 5.0
"""Seconds in the end for a console that takes nothing, and for one that takes something."""


def main() -> None:
    for number in IGNORED:  # it ends when all that it reads from has
        signal.signal(number, signal.SIG_IGN)
    request = decode(RelayRequest, json.loads(_first_line()))
    relay = Relay(request)
    relay.run(socket.socket(fileno=request.listener))
    for console in relay.consoles:
        console.end_line()
        console.drain(PATIENCE, AT_MOST)
    os._exit(0)  # a thread may still wait for the console


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or sys.exit(0)
    return line


class Stream:
    """One end of a pipe or terminal that a rank writes to."""

    def __init__(self, file: int, takers: list[Callable[[bytes], None]], lines: list[Lines], log: Lines) -> None:
        self.file, self.log, self._takers, self._lines = file, log, takers, lines
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
            for take in self._takers:
                take(data)
            self._waits_since = time.monotonic()
        return True

    def settle(self) -> None:
        """Writes to the log what has waited there for long."""
        if self._waits_since is not None and time.monotonic() - self._waits_since > SETTLED:
            self._waits_since = None
            self.log.settle()

    def close(self) -> None:
        for lines in self._lines:
            lines.close()
        os.close(self.file)


class Rank:
    """What one rank writes to, in the order in which it is read: stdout, stderr, what is for the log alone."""

    def __init__(self, log: LogFile) -> None:
        self.log = log
        self.streams: list[Stream] = []


class Relay:
    """All ranks of this node."""

    def __init__(self, request: RelayRequest) -> None:
        self._request = request
        out = Console(1)
        same = os.path.sameopenfile(1, 2)
        self._out, self._err = out, out if same else Console(2)
        self.consoles = [self._out] if same else [self._out, self._err]
        self._one_node = request.nodes == 1
        """Otherwise other relays write to one console, through terminals of srun; whole lines can be told apart."""
        self._selector = selectors.DefaultSelector()
        self._ranks: list[Rank] = []
        self._terminals: list[tuple[int, int, Console]] = []
        """Of ranks that have a terminal: it, the process, and the console whose size it has."""
        self._until: float | None = None

    def run(self, listener: socket.socket) -> None:
        """Until stdin is closed and no rank's output is open, or LAST_WORDS later."""
        self._selector.register(0, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)
        while self._until is None or (self._ranks and time.monotonic() < self._until):
            ready = {key.fd: key.data for key, _ in self._selector.select(TICK)}
            if listener.fileno() in ready:
                self._welcome(listener)
            for rank in [rank for rank in self._ranks if rank in ready.values()]:
                self._read(rank)
            for rank in self._ranks:
                for stream in rank.streams:
                    stream.settle()
            self._follow_size()
            if 0 in ready and not self._pass_on_message():
                self._selector.unregister(0)
                self._until = time.monotonic() + LAST_WORDS
        for rank in [*self._ranks]:
            for stream in [*rank.streams]:
                self._close(rank, stream)

    def _pass_on_message(self) -> bool:
        """Shows what the supervisor says, as lines among the ranks' lines. False when it has no more to say."""
        message = os.read(0, 65_536)
        if message:
            self._err.write_lines(message.decode(errors="replace"))
        return bool(message)

    def _read(self, rank: Rank) -> None:
        """One round over a rank's streams in their order: what it said before an error comes before it."""
        for stream in [*rank.streams]:
            if not stream.read():
                self._close(rank, stream)

    def _close(self, rank: Rank, stream: Stream) -> None:
        self._selector.unregister(stream.file)
        rank.streams.remove(stream)
        self._terminals = [terminal for terminal in self._terminals if terminal[0] != stream.file]
        stream.close()
        if not rank.streams:
            rank.log.close()
            self._ranks.remove(rank)

    # ------------------------------------------------------------ a new rank

    def _welcome(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), listener.accept()[0] as asking:
            asking.settimeout(LAST_WORDS)
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
        out = err = None
        if self._request.shown.includes(rank, local_rank):
            out = self._shown(joined, rank, self._out, pid)
            err = out if self._err is self._out else self._shown(joined, rank, self._err, pid)
        log = Lines(joined.log.write)
        reading, writing = os.pipe()
        self._add(joined, Stream(reading, [_after(joined, log.feed)], [log], log))
        return [writing if out is None else out, writing if err is None else err, writing]

    def _shown(self, joined: Rank, rank: int, console: Console, pid: int) -> int:
        """The end for a stream that goes to the console too."""
        log = Lines(joined.log.write)
        if rank == 0 and (self._request.shown.is_rank0_alone or (console.is_terminal and self._one_node)):
            reading, writing = self._terminal(console, pid) if console.is_terminal else os.pipe()
            self._add(joined, Stream(reading, [console.write, log.feed], [log], log))
            return writing
        prefix = f"[rank{rank}]: " if rank else ""
        seen = Lines(lambda text: console.write_lines(text, prefix))
        reading, writing = os.pipe()
        self._add(joined, Stream(reading, [seen.feed, log.feed], [seen, log], log))
        return writing

    def _add(self, rank: Rank, stream: Stream) -> None:
        rank.streams.append(stream)
        self._selector.register(stream.file, selectors.EVENT_READ, rank)

    # ------------------------------------------------------------ terminals

    def _terminal(self, console: Console, pid: int) -> tuple[int, int]:
        """A terminal like the console's, which passes on what is written as it is; a pipe where there are none."""
        try:
            reading, writing = os.openpty()
        except OSError:
            return os.pipe()
        tty.setraw(writing)
        with contextlib.suppress(OSError):
            fcntl.ioctl(reading, termios.TIOCSWINSZ, _size(console.file))
            self._terminals.append((reading, os.pidfd_open(pid), console))
        return reading, writing

    def _follow_size(self) -> None:
        """A terminal that was resized: the rank is told as by its own."""
        for terminal, process, console in self._terminals:
            with contextlib.suppress(OSError):
                size = _size(console.file)
                if size != _size(terminal):
                    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
                    signal.pidfd_send_signal(process, signal.SIGWINCH)


def _size(terminal: int) -> bytes:
    return fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))


def _after(rank: Rank, take: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Ends the lines that the rank's other streams have begun, before something goes to the log alone."""

    def taking(data: bytes) -> None:
        for stream in rank.streams[:-1]:
            stream.log.close()
        take(data)

    return taking


if __name__ == "__main__":
    main()
