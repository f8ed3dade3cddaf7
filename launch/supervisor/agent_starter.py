"""How the supervisor starts an agent: forked from a fork server that has imported torch already, or executed anew."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from launch.console import mark, say
from launch.node.channel import receive, send
from launch.node.fork_server import PreloadOrder
from launch.node.request import AgentRequest
from launch.plan import LaunchPlan
from launch.signals import ReceivedSignals

HOME = Path(__file__).resolve().parents[2]
"""The folder that `launch` is imported from."""


class Agent(Protocol):
    """A running agent."""

    pid: int

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class ExecutedAgent:
    """`python -m launch.node.agent`, our child. Its stdin is its lifeline."""

    def __init__(self, plan: LaunchPlan, request: AgentRequest) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch.node.agent"],
            stdin=subprocess.PIPE,
            cwd=HOME,  # so that no folder called launch in the user's own hides this one
            env={**os.environ, **plan.environment},
            start_new_session=True,  # so that Ctrl-C reaches the supervisor alone
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            self._process.stdin.flush()

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


class ForkedAgent:
    """A child of the fork server, which tells of its end."""

    def __init__(self, pid: int, server: "ForkServerProcess") -> None:
        self.pid = pid
        self._server = server

    def poll(self) -> int | None:
        return self._server.code(self.pid)

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        return


class ForkServerProcess:
    """The fork server, our child, for one generation after another; the kernel ends it with us."""

    def __init__(self, plan: LaunchPlan, log: Path) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._codes: dict[int, int] = {}
        self._newest: ForkedAgent | None = None
        self.gone = False
        """It has ended."""
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-u",
                str(HOME / "launch/node/fork_server.py"),
                str(theirs.fileno()),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **plan.environment},
            start_new_session=True,
        )
        theirs.close()
        order = PreloadOrder(
            cwd=os.getcwd(),
            path=_folder_of(plan.program),
            log=str(log),
            modules=[*plan.preload],
            strict=not plan.is_training,  # the user has named the modules; those of a training are a guess of ours
        )
        send(self._channel, asdict(order))

    def ask(self, request: AgentRequest) -> None:
        """For an agent: it comes once torch is imported."""
        self._newest = None
        send(self._channel, asdict(request))

    def agent(self) -> ForkedAgent | None:
        """The one asked for, once it is there."""
        self._read()
        return self._newest

    def code(self, pid: int) -> int | None:
        """How the agent ended; None while it runs."""
        self._read()
        if self.gone:
            return self._codes.get(pid, -signal.SIGKILL)  # the kernel ends it with the server
        return self._codes.get(pid)

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._channel.fileno()

    def close(self) -> None:
        self._channel.close()
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        """All that there is to read."""
        while not self.gone and select.select([self._channel], [], [], 0)[0]:
            message = receive(self._channel)
            if message is None:
                self.gone = True
            elif "agent" in message:
                self._newest = ForkedAgent(message["agent"], self)
            elif "refused" in message:
                say(f"{mark('!', 'yellow')} not preloaded ({message['refused']}): each rank starts by itself")
            else:
                self._codes[message["ended"]] = message["code"]


def _folder_of(program: tuple[str, ...]) -> str:
    """What Python puts first in the program's sys.path."""
    return os.getcwd() if program[0] == "-m" else str(Path(program[0]).resolve().parent)


class AgentStarter:
    """Starts agents for one launch: preloaded as the plan has it, for as long as that works."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._server: ForkServerProcess | None = None
        self._preload = plan.start == "preload"
        if self._preload:
            self._begin()

    def agent(self, request: AgentRequest, signals: ReceivedSignals) -> Agent | None:
        """Runs one generation on this node; None when it was asked to stop before it began."""
        if self._preload:
            if self._server is None or self._server.process.poll() is not None:
                self._begin()
            assert self._server is not None
            self._server.ask(request)
            while (agent := self._server.agent()) is None and not self._server.gone:
                if signals.stop is not None:
                    return None
                signals.wait(1.0, [self._server])
            if agent is not None:
                return agent
            self._preload = False
            self.close()
            why = f"the fork server ended, see {self._log}"
            say(f"{mark('!', 'yellow')} not preloaded ({why}): each rank starts by itself")
        return ExecutedAgent(self._plan, request)

    @property
    def pids(self) -> list[int]:
        """The fork server's process, which outlives a generation."""
        return [self._server.process.pid] if self._server is not None else []

    def loss(self) -> str | None:
        """What ended the fork server, and with it the agent and the ranks; None where it lives or there is none."""
        code = self._server.process.poll() if self._server is not None else None
        if code is None:
            return None
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"the process that they are forked from {end}"

    def news(self) -> list[ForkServerProcess]:
        """To wait for besides signals."""
        return [self._server] if self._server is not None and not self._server.gone else []

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def _log(self) -> Path:
        return self._plan.preload_log.absolute()

    def _begin(self) -> None:
        self.close()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._server = ForkServerProcess(self._plan, self._log)
