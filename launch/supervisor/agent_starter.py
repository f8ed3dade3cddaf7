"""How the supervisor starts an agent: forked from a fork server that has imported torch already, or executed anew."""

import contextlib
import os
import signal
import socket
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

from ..children import ForkServerProcess, drop_fork_server, start, take_fork_server
from ..console import mark, say
from ..node.channel import send
from ..node.fork_client import ForkClient, ForkedProcess
from ..node.fork_server import PreloadOrder
from ..node.request import AgentRequest
from ..plan import LaunchPlan
from ..signals import ReceivedSignals
from .early_settings import early_setting

Agent = subprocess.Popen | ForkedProcess


class AgentStarter:
    """Starts the agents of one launch: from a fork server if the plan says so, for as long as that works.

    The fork server is our child and serves one generation after another. The kernel ends it when we end.
    """

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan, self._log = plan, plan.preload_log.absolute()
        self._server: ForkServerProcess | None = None
        self._client: ForkClient | None = None
        why = _too_late(plan) if plan.flags.start == "auto" else None
        if why is None and plan.flags.start != "exec":
            self._client = self._order()
            return
        drop_fork_server()
        if why is not None:
            say_not_preloaded(why)

    def agent(self, request: AgentRequest, signals: ReceivedSignals) -> Agent | None:
        """Starts the agent of one generation on this node. None when a stop was asked for before the agent began."""
        if self._client is not None:
            if self.server_death() is not None:
                self.close()
                self._client = self._order()
            self._client.ask(asdict(request))
            while (agent := self._client.answer()) is None and not self._client.is_gone:
                if signals.stop is not None:
                    return None
                signals.wait(1.0, self.wakeup_sockets())
            if agent is not None:
                return agent
            self.close()
            say_not_preloaded(f"the fork server ended, see {self._log}")
        # This agent imports torch itself. Its own stdin is a pipe from us, its lifeline: once that closes, because we
        # have dropped the process or ended, it ends. Its ranks get the user's stdin, which it inherits as a copy.
        stdin = os.dup(0)
        try:
            told = replace(request, stdin=stdin)
            return start("node.agent", told, environment=self._plan.environment, files=[stdin])[0]
        finally:
            os.close(stdin)

    @property
    def pids(self) -> list[int]:
        """The fork server's process, which outlives a generation."""
        return [self._server.process.pid] if self._server is not None else []

    def server_death(self) -> str | None:
        """What ended the fork server, and with it the agent and the ranks; None where it lives or there is none."""
        code = self._server.process.poll() if self._server is not None else None
        if code is None:
            return None
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"the process that they are forked from {end}"

    def wakeup_sockets(self) -> list[socket.socket]:
        """What to wait on besides signals."""
        return [self._client.channel] if self._client is not None and not self._client.is_gone else []

    def close(self) -> None:
        if self._server is not None:
            self._server.end()
        self._server = self._client = None

    def _order(self) -> ForkClient:
        """Has a fork server, which may have begun, import what the plan says."""
        with contextlib.suppress(OSError):  # the server works without a log
            self._log.parent.mkdir(parents=True, exist_ok=True)
        server = self._server = take_fork_server()
        program = self._plan.program
        order = PreloadOrder(
            environment=self._plan.environment,
            cwd=os.getcwd(),
            path=_first_path(program),
            log=str(self._log),
            modules=[*self._plan.requirements.preload],
            strict=not self._plan.is_training,  # a training's are our guess; others were named by the user
        )
        send(server.socket, asdict(order))
        return ForkClient(server.socket, say_not_preloaded)


def _too_late(plan: LaunchPlan) -> str | None:
    """A setting of somebody's program that would come too late in a rank that has torch already; None without one."""
    if not plan.requirements.environment_wins or plan.program[0] == "--no-python":
        return None
    if "PYTHON_EXEC" in os.environ:  # torch's name for another interpreter
        return f"PYTHON_EXEC is {os.environ['PYTHON_EXEC']}"
    early = early_setting(plan.program, {**os.environ, **plan.environment})
    return str(early) if early else None


def _first_path(program: tuple[str, ...]) -> str:
    """Where Python looks for the program's own modules."""
    if program[0] == "-m":
        return os.getcwd()
    path = Path(program[0]).resolve()
    return str(path if path.is_dir() else path.parent)


def say_not_preloaded(why: str) -> None:
    say(f"{mark('!', 'yellow')} not preloaded ({why}): each rank starts by itself")
