"""Real ranks for tests: W processes forked from a server that has torch loaded, in a fraction of a second.

Every rank sees what torchrun would set, reports its return value or its traceback, and has its stack printed when it
hangs. The store is held open by the test's own process, as torchrun's agent does it: no port can be lost in between.
"""

import contextlib
import ctypes
import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import PIL

PRELOADED = ["pytest", "numpy", "torch", "torch.distributed", "torch.nn.parallel", "torch.optim", "torch.utils.data"]
PRELOADED += ["torchvision.transforms.v2", "safetensors.torch", "dist_train.worker"]
PRELOADED += ["numpy.ma", "dist_train.commands.fingerprint", "dist_train.report.page"]
PRELOADED += [*(f"PIL.{name}" for name in PIL._plugins), "tests.rank_pool"]
"""Also what a training imports at its end, in each of a thousand ranks."""
DUMP_STACKS = signal.SIGRTMAX - 1
"""None of the signals that the code under test gives a meaning to."""
GRACE = 3.0
"""Seconds that the other ranks have to end by themselves after one has failed."""
PR_SET_PDEATHSIG = 1


class RankFailed(AssertionError):
    """A rank raised, died or hung. The message has the traceback of the first to fail, or every rank's stack.

    `rank` is the first rank to fail, None for a hang.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


@dataclass(eq=False, kw_only=True)
class Rank:
    """One started process and what is known of it."""

    number: int
    process: BaseProcess
    answers: Connection
    folder: Path
    done: bool = False
    value: Any = None
    failure: str | None = None
    failed_at: float = 0.0
    """When it raised, by the clock that all processes share; 0 of one that was killed, by which its peers fail."""

    def take_answer(self) -> None:
        """Reads what the process sent before it ended, or finds out how it died."""
        self.done = True
        try:
            kind, content = self.answers.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(GRACE)
            self.failure = f"ended without an answer, {_exit_in_words(self.process.exitcode)}"
            return
        if kind == "value":
            self.value = content
        else:
            self.failure, self.failed_at = content

    def output(self, name: str, characters: int = 3000) -> str:
        path = self.folder / f"rank{self.number}.{name}"
        return path.read_text(errors="replace")[-characters:] if path.exists() else ""


def start_server() -> None:
    """Starts the fork server, which goes on importing while the caller does something else."""
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Calls `function(ranks, *args)` in `world_size` processes; returns what they returned, by rank.

    `function` is a module's top-level function, `ranks` a `dist_train.parallel.ranks.Ranks`. The process group is for
    it to open, with dist_train.parallel.process_group or with a plain `init_process_group("gloo")`; what it leaves open
    is closed.

    Raises:
        RankFailed: with the traceback of the first rank that failed, or after `timeout` seconds with all stacks.
    """
    with at_work(function, world_size, *args, environment=environment) as ranks:
        _wait_for_all(ranks, timeout)
        return [rank.value for rank in ranks]


@contextlib.contextmanager
def at_work(
    function: Callable[..., Any], world_size: int, *args: Any, environment: Mapping[str, str] | None = None
) -> Iterator[list[Rank]]:
    """As run_ranks, but the caller sees the processes at work, may kill them, and waits for them as it likes.

    What still runs at the end of the block is killed.
    """
    from torch.distributed import TCPStore

    start_server()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        more = {"MASTER_PORT": str(store.port), **(environment or {})}
        ranks = [_start(function, args, rank, world_size, Path(folder), more) for rank in range(world_size)]
        try:
            yield ranks
        finally:
            _end(ranks)


def _start(
    function: Callable[..., Any], args: tuple, rank: int, world_size: int, folder: Path, more: dict[str, str]
) -> Rank:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        **more,
    }
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    # Not daemonic: a daemonic process may have no children, and a DataLoader has workers.
    process = context.Process(target=_work, args=(function, args, environment, theirs, str(folder)), daemon=False)
    process.start()
    theirs.close()
    return Rank(number=rank, process=process, answers=ours, folder=folder)


def _wait_for_all(ranks: list[Rank], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    first: Rank | None = None
    while waiting := {rank.answers: rank for rank in ranks if not rank.done}:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        came = [waiting[connection] for connection in ready]  # type: ignore[index]
        for rank in came:
            rank.take_answer()
        if first is None and (failed := [rank for rank in came if rank.failure]):  # on a busy machine, several at once
            first, deadline = min(failed, key=lambda rank: rank.failed_at), min(deadline, time.monotonic() + GRACE)
    if first is not None:
        raise RankFailed(_failure_in_words(first, ranks), first.number)
    if waiting:
        raise RankFailed(_hang_in_words(ranks, timeout))
    for rank in ranks:
        rank.process.join(GRACE)


def _end(ranks: list[Rank]) -> None:
    """Kills what still runs: the ranks and, through their process groups, what they started."""
    for rank in ranks:
        if rank.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            with contextlib.suppress(ProcessLookupError):  # it had no time yet to become the leader of a group
                os.kill(rank.process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    for rank in ranks:
        rank.process.join()
        rank.process.close()
        rank.answers.close()


def _failure_in_words(first: Rank, ranks: list[Rank]) -> str:
    lines = [f"rank {first.number} of {len(ranks)} failed first:", first.failure or "", first.output("out")]
    for rank in ranks:
        if rank is not first:
            last = (rank.failure or "").strip().splitlines()[-1:] or ["done" if rank.done else "ended for it"]
            lines.append(f"rank {rank.number}: {last[0]}")
    return "\n".join(lines)


def _hang_in_words(ranks: list[Rank], timeout: float) -> str:
    for rank in ranks:
        if not rank.done and (rank.folder / f"rank{rank.number}.stacks").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.process.pid, DUMP_STACKS)  # type: ignore[arg-type]
    time.sleep(0.5)  # the handlers run at once, unless a process is stopped
    lines = [f"not all of {len(ranks)} ranks were done after {timeout:g} s"]
    for rank in ranks:
        state = "done" if rank.done else f"\n{rank.output('stacks', 6000) or 'no stack: the process did not answer'}"
        lines.append(f"rank {rank.number}: {state}\n{rank.output('out')}".rstrip())
    return "\n".join(lines)


def _exit_in_words(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


# ---------------------------------------------------------------- in the rank


def _work(function: Callable[..., Any], args: tuple, environment: dict[str, str], answers: Connection, to: str) -> None:
    gc.freeze()  # as in ranks of the launcher: what all share is neither looked through nor copied
    _settle(environment, Path(to))
    import torch

    from dist_train.parallel.ranks import Ranks

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    try:
        answer = ("value", function(Ranks.from_environment(), *args))
    except BaseException:
        answer = ("failure", (traceback.format_exc(), time.monotonic()))
    sys.stdout.flush()
    answers.send(answer)
    answers.close()
    if answer[0] == "failure":
        os._exit(1)  # closing a process group whose peers still wait could block
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _settle(environment: dict[str, str], folder: Path) -> None:
    """A session of its own, the end when the server ends, output into a file, and a way to ask for the stack."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(environment)
    rank = environment["RANK"]
    output = os.open(folder / f"rank{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    stacks = (folder / f"rank{rank}.stacks").open("w")
    faulthandler.register(DUMP_STACKS, file=stacks, all_threads=True)
    _settle.stacks = stacks  # type: ignore[attr-defined]  # open for as long as the process lives
