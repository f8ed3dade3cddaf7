"""How other processes of ours are started, and where they find our packages."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from dist_train.config.replies import Reply
from dist_train.rundir.codec import decode

from .console import open_standard_streams

PACKAGE = str(__package__)
"""What this folder is called where it is imported from: `launch` in a checkout, `dist_train.launch` once installed."""
LAUNCH = Path(__file__).absolute().parent
ROOT = LAUNCH.parents[PACKAGE.count(".")]
"""The folder that our packages are imported from."""


def isolated(module: str) -> tuple[str, ...]:
    """What a rank executes when it needs no module of the user's."""
    return (str(ROOT / "dist_train" / "isolated" / "run.py"), module)


def start(
    module: str, request: Any, *options: str, environment: dict[str, str] | None = None, files: Sequence[int] = ()
) -> tuple[subprocess.Popen, IO[bytes]]:
    """Starts a module of this folder, which reads a request as one line of JSON. Returns the process and its stdin.

    It runs in a session of its own, so that Ctrl-C and Ctrl-Z reach the supervisor alone.

    Args:
        options: of Python.
        files: descriptors that it inherits.
    """
    process = subprocess.Popen(
        [sys.executable, *options, "-m", f"{PACKAGE}.{module}"],
        stdin=subprocess.PIPE,
        cwd=ROOT,  # so that no folder called launch in the user's own hides this one
        env={**os.environ, **(environment or {})},
        pass_fds=files,
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        process.stdin.flush()
    return process, process.stdin


@dataclass(frozen=True, kw_only=True)
class ForkServerProcess:
    """A fork server (node/fork_server.py), and our end of the line to it. It ends when that is closed, or we end."""

    process: subprocess.Popen
    socket: socket.socket

    def end(self) -> None:
        self.process.kill()  # before it learns that we have gone: it would end what may live on
        self.process.wait()
        self.socket.close()


EARLY = {"train": ("dist_train.config.source", "dist_train.tracking.base", "dist_train.rundir.records"), "run": ()}
"""Commands that fork ranks, and what these import that needs neither torch nor NumPy."""
_WITHOUT_RANKS = {"--start", "--dry-run", "--help", "-h"}
_begun: list[ForkServerProcess] = []


def begin_fork_server(words: Sequence[str]) -> None:
    """Starts the one that the command will need, so that both set themselves up at once. It ends with this process."""
    if words and words[0] in EARLY and not _WITHOUT_RANKS & {word.partition("=")[0] for word in words}:
        with suppress(OSError):  # it is tried once more, and told then
            _begun.append(_start_fork_server(EARLY[words[0]]))


def take_fork_server() -> ForkServerProcess:
    """One that waits for its order: the one that has begun, or a new one."""
    return _begun.pop() if _begun else _start_fork_server()


def drop_fork_server() -> None:
    """Ends the one that has begun, which is not needed."""
    while _begun:
        _begun.pop().end()


def _start_fork_server(early: Sequence[str] = ()) -> ForkServerProcess:
    open_standard_streams()  # else one of the two sockets could have the number of one that is closed
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    file = str(LAUNCH / "node" / "fork_server.py")
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-u", file, str(theirs.fileno()), str(os.getpid()), str(ROOT), PACKAGE, *early],
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    return ForkServerProcess(process=process, socket=ours)


R = TypeVar("R", bound=Reply)


def ask(kind: type[R], module: str, *words: str, timeout_s: float, alone: bool = True) -> R:
    """What `python -m module` replies; `problem` says why it does not.

    Args:
        alone: the current folder is not searched for modules: it may be a run that somebody else has sent.
    """
    command = [sys.executable, *["-P"] * alone, "-m", module, *words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=child_environment())
    except subprocess.TimeoutExpired:
        return kind(problem=f"no answer within {timeout_s} s")
    except OSError as error:
        return kind(problem=str(error))
    said = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
    try:
        return decode(kind, json.loads(answer.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return kind(problem=said[-1])


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by `python -m module`, which receives the signals and sets the exit code.

    The current folder is not searched for modules: it may be a run that somebody else has sent.
    """
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], child_environment())


def child_environment(**variables: str) -> dict[str, str]:
    """For another process of ours: this one's, with `variables` and with our packages first on PYTHONPATH."""
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(ROOT), *given])}
