"""Ranks that are forked from the fork server instead of executed: what torch's elastic agent sees of them.

Runs in the agent, which imports torch; see fork_server.py for the other side.
"""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from typing import Any

from launch.node.channel import receive, send


class ForkClient:
    """The agent's end of the line to the fork server."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._before = dict(os.environ)
        self._codes: dict[int, int] = {}
        self.pid = os.getppid()

    def start(self, environment: dict[str, str], words: list[str]) -> "ForkedProcess | None":
        """A rank: rank/main.py with these words. None where the server will not fork, which the supervisor knows.

        Raises:
            RuntimeError: when the server is gone.
        """
        added = {name: value for name, value in os.environ.items() if self._before.get(name) != value}  # by torch
        send(self._channel, {"environment": {**added, **environment}, "words": words})
        while True:
            answer = self._next(None)
            if answer is None:
                raise RuntimeError("the fork server is gone")
            if "refused" in answer:
                return None
            if "rank" in answer:
                return ForkedProcess(answer["rank"], self)

    def code(self, pid: int, seconds: float | None = 0.0) -> int | None:
        """Exit code of a rank, negative for a signal; None when it has not ended within `seconds`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while pid not in self._codes:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                answer = self._next(left)
            except (TimeoutError, BlockingIOError):
                return None
            if answer is None:  # the kernel ends the ranks of a server that is gone
                return -signal.SIGKILL
        return self._codes[pid]

    def _next(self, seconds: float | None) -> Any:
        self._channel.settimeout(seconds)
        try:
            packet = self._channel.recv(1, socket.MSG_PEEK)
        except (TimeoutError, BlockingIOError):
            raise
        except OSError:
            return None
        message = receive(self._channel) if packet else None
        if message is not None and "ended" in message:
            self._codes[message["ended"]] = message["code"]
        return message


class ForkedProcess:
    """A process that is not our child, as a subprocess.Popen."""

    def __init__(self, pid: int, server: ForkClient) -> None:
        self.pid = pid
        self._server = server

    def poll(self) -> int | None:
        return self._server.code(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        code = self._server.code(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0.0)
        return code


class ForkedRank:
    """What torch's agent asks of its SubprocessHandler."""

    def __init__(self, process: ForkedProcess) -> None:
        self.proc = process

    def close(self, death_sig: signal.Signals | None = None) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.proc.pid, death_sig or signal.SIGTERM)


def fork_ranks_from(server: ForkClient) -> None:
    """From now on, torch's agent in this process has its ranks forked, unless the server refuses.

    The agent starts processes by one function, and has no other place to put one's own in.
    """
    from torch.distributed.elastic.multiprocessing import api

    execute = api.get_subprocess_handler

    def handler(entrypoint: str, args: tuple, env: dict[str, str], *more: Any, **options: Any) -> Any:
        numa = options.get("numa_options")
        if numa is None:
            _, _, parent, *words = args  # -u RANK_MAIN PARENT …
            process = server.start(env, [str(server.pid), *words])
            if process is not None:
                return ForkedRank(process)
        return execute(entrypoint, args, env, *more, **options)

    api.get_subprocess_handler = handler
