"""How the supervisor starts an agent: forked from a fork server that has imported torch already, or executed anew."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..children import LAUNCH, PACKAGE, ROOT
from ..console import mark, say
from ..node.channel import receive, send
from ..node.fork_server import PreloadOrder
from ..node.request import AgentRequest
from ..plan import LaunchPlan
from ..signals import ReceivedSignals


class ExecutedAgent(subprocess.Popen[bytes]):
    """The agent as a child of ours, which imports torch itself. Its stdin is its lifeline."""

    def __init__(self, plan: LaunchPlan, request: AgentRequest) -> None:
        super().__init__(
            [sys.executable, "-m", f"{PACKAGE}.node.agent"],
            stdin=subprocess.PIPE,
            cwd=ROOT,  # so that no folder called launch in the user's own hides this one
            env={**os.environ, **plan.environment},
            start_new_session=True,  # so that Ctrl-C reaches the supervisor alone
        )
        assert self.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            self.stdin.flush()

    def close(self) -> None:
        self.wait()
        if self.stdin:
            with contextlib.suppress(OSError):
                self.stdin.close()


class ForkServerProcess:
    """The fork server, our child, for one generation after another; the kernel ends it with us."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.log = plan.preload_log.absolute()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._codes: dict[int, int] = {}
        self._newest: ForkedAgent | None = None
        self.gone = False
        """It has ended."""
        words = [str(LAUNCH / "node" / "fork_server.py"), str(theirs.fileno()), str(os.getpid()), str(ROOT), PACKAGE]
        self.process = subprocess.Popen(
            [sys.executable, "-u", *words],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **plan.environment},
            start_new_session=True,
        )
        theirs.close()
        program = plan.program[0]
        order = PreloadOrder(
            cwd=os.getcwd(),
            path=os.getcwd() if program == "-m" else str(Path(program).resolve().parent),  # what Python puts first
            log=str(self.log),
            modules=[*plan.requirements.preload],
            strict=not plan.is_training,  # the user has named the modules; those of a training are a guess of ours
        )
        send(self._channel, asdict(order))

    def fork(self, request: AgentRequest, signals: ReceivedSignals) -> "ForkedAgent | None":
        """An agent, once torch is imported; None where the server is gone, or a stop was asked for before."""
        self._newest = None
        send(self._channel, asdict(request))
        while self._newest is None and not self.gone and signals.stop is None:
            signals.wait(1.0, [self])
            self._read()
        return self._newest

    def code(self, pid: int) -> int | None:
        """How the agent ended; None while it runs."""
        self._read()
        return self._codes.get(pid, -signal.SIGKILL if self.gone else None)  # the kernel ends it with the server

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
                _say_not_preloaded(message["refused"])
            else:
                self._codes[message["ended"]] = message["code"]


class ForkedAgent:
    """A child of the fork server, which tells of its end."""

    def __init__(self, pid: int, server: ForkServerProcess) -> None:
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


Agent = ExecutedAgent | ForkedAgent


def _say_not_preloaded(why: str) -> None:
    say(f"{mark('!', 'yellow')} not preloaded ({why}): each rank starts by itself")


class AgentStarter:
    """Starts agents for one launch: preloaded as the plan has it, for as long as that works."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._server = ForkServerProcess(plan) if plan.flags.start == "preload" else None

    def agent(self, request: AgentRequest, signals: ReceivedSignals) -> Agent | None:
        """Runs one generation on this node; None when it was asked to stop before it began."""
        if self._server is None:
            return ExecutedAgent(self._plan, request)
        if self._server.process.poll() is not None:
            self._server.close()
            self._server = ForkServerProcess(self._plan)
        agent = self._server.fork(request, signals)
        if agent is not None or not self._server.gone:
            return agent
        _say_not_preloaded(f"the fork server ended, see {self._server.log}")
        self.close()
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

    def news(self) -> Sequence[ForkServerProcess]:
        """To wait for besides signals."""
        return [self._server] if self._server is not None and not self._server.gone else []

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
