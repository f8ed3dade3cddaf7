"""Asks the fork server (fork_server.py) for processes, and hears how they end.

The supervisor has a client of its own for the agents, and each agent one for its ranks. Standard library only.
"""

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .channel import receive, send


class ForkClient:
    """A client's end of a line to the fork server.

    Args:
        refused: is told why no rank can be forked.

    Attributes:
        is_gone: the server has ended, and the kernel has ended all that it had forked.
    """

    def __init__(self, channel: socket.socket, refused: Callable[[str], None] | None = None) -> None:
        self.channel, self._refused = channel, refused
        self.is_gone = False
        self._codes: dict[int, int] = {}
        self._started: int | None = None
        self._is_answered = False

    def ask(self, request: dict[str, Any]) -> None:
        """Asks for a process, which `answer` returns once it is there."""
        self._started, self._is_answered = None, False
        send(self.channel, request)

    def answer(self, seconds: float | None = 0.0) -> "ForkedProcess | None":
        """The process asked for. None where no answer came within `seconds`, or the server will not fork."""
        self._listen(seconds, lambda: self._is_answered)
        return None if self._started is None else ForkedProcess(self._started, self)

    def code(self, pid: int, seconds: float | None = 0.0) -> int | None:
        """Exit code of a process, negative for a signal; None when it has not ended within `seconds`."""
        self._listen(seconds, lambda: pid in self._codes)
        return self._codes.get(pid, -signal.SIGKILL if self.is_gone else None)

    def wait(self, seconds: float) -> None:
        """Until there is something to hear, so many seconds at most."""
        is_news = bool(select.select([self.channel], [], [], seconds)[0])
        if is_news and not self.channel.recv(1, socket.MSG_PEEK):  # the server is gone: that is no news for ever
            time.sleep(seconds)

    def _listen(self, seconds: float | None, until: Callable[[], bool]) -> None:
        """Takes what the server says until `until` holds, the server is gone, or the time is over (None: no limit)."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not until() and not self.is_gone:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.channel], [], [], left)[0]:
                return
            match receive(self.channel):
                case {"started": pid}:
                    self._started, self._is_answered = pid, True
                case {"ended": pid, "code": code}:
                    self._codes[pid] = code
                case {"refused": why} if self._refused is not None:
                    self._refused(why)
                case None:
                    self.is_gone = True


class ForkedProcess:
    """A process that is not our child, with the methods of a subprocess.Popen."""

    def __init__(self, pid: int, client: ForkClient) -> None:
        self.pid, self._client = pid, client

    def poll(self) -> int | None:
        return self._client.code(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        code = self._client.code(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0.0)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
