"""Three rank processes that work off one training after another, so that a training costs no start of processes.

A job opens a process group of one, two or three ranks by itself, with a store of its own. What it changes around
itself is put back, and the global generators begin each job elsewhere, so that nothing depends on them unseen. After a
job that did not end well the processes are replaced.
"""

import contextlib
import gc
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from tests import leaks, rank_pool

SIZE = 3
PATIENCE = 120.0
"""Seconds for one job; the processes wait for each other far longer."""


class Hung(AssertionError):
    """Not all ranks gave an answer, or not in time."""


@dataclass(frozen=True)
class Failed:
    """What a job raised."""

    traceback: str


class Pool:
    """A context manager. `run` has the signature of rank_pool.run_ranks."""

    def __enter__(self) -> "Pool":
        self._open = contextlib.ExitStack()
        self._jobs = 0
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        """Calls `function(ranks, *args)` in `world_size` of the processes; returns what they returned, by rank.

        An answer that is an `Ended` other than with 0 has the processes replaced. Where all have died, there is none.

        Raises:
            Hung: with the stacks of all.
        """
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._jobs += 1
        for connection in self._ours[:world_size]:
            connection.send((function, world_size, store.port, self._jobs, args))
        try:
            answers = _answers(self._ours[:world_size], PATIENCE)
        except (EOFError, ConnectionError):
            for rank in self._ranks[:world_size]:
                rank.process.join(rank_pool.GRACE)
            killed = all(rank.process.exitcode == -signal.SIGKILL for rank in self._ranks[:world_size])
            codes = [rank.process.exitcode for rank in self._ranks[:world_size]]
            self._replace()
            if killed:
                return []
            raise Hung(f"the ranks died, with {codes}") from None
        except Hung:
            said = rank_pool._hang_in_words(self._ranks, PATIENCE)
            self._replace()
            raise Hung(said) from None
        if any(getattr(answer, "code", 0) != 0 or isinstance(answer, Failed) for answer in answers):
            self._replace()
        failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
        if failed is not None:
            raise Hung(failed.traceback)
        return answers

    def _start(self) -> None:
        pairs = [get_context("forkserver").Pipe() for _ in range(SIZE)]
        self._ours = [ours for ours, _ in pairs]
        theirs = [connection for _, connection in pairs]
        self._ranks = self._open.enter_context(rank_pool.at_work(_serve, SIZE, theirs))
        leaks.SERVERS.update(rank.process.pid for rank in self._ranks)
        for connection in theirs:
            connection.close()

    def _replace(self) -> None:
        for connection in self._ours:
            connection.close()
        self._open.close()
        self._start()


def _answers(connections: list[Connection], patience: float) -> list[Any]:
    deadline, found = time.monotonic() + patience, {}
    while waiting := [connection for connection in connections if connection not in found]:
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Hung
        for connection in ready:
            found[connection] = connection.recv()  # type: ignore[union-attr]
    return [found[connection] for connection in connections]


# ---------------------------------------------------------------- in the process


def _serve(ranks: Any, connections: list[Connection]) -> None:
    """Works off jobs until the other side closes the connection."""
    for number, connection in enumerate(connections):
        if number != ranks.rank:
            connection.close()
    ours = connections[ranks.rank]
    gc.freeze()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            function, world_size, port, number, args = ours.recv()
            with _as_one_of(ranks.rank, world_size, port, number) as me:
                answer = _answer(function, me, args)
            gc.collect()  # what is left of process groups would else be freed in a loading process, and crash it
            ours.send(answer)


def _answer(function: Callable[..., Any], ranks: Any, args: tuple) -> Any:
    try:
        return function(ranks, *args)
    except Exception:
        return Failed(traceback.format_exc())


@contextlib.contextmanager
def _as_one_of(rank: int, world_size: int, port: int, number: int) -> Iterator[Any]:
    """The surroundings of a rank, and all of them as they were afterwards."""
    import numpy as np
    import torch

    from dist_train.parallel.ranks import Ranks

    environment, folder = dict(os.environ), os.getcwd()
    os.environ.update(
        WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size), MASTER_PORT=str(port), LOCAL_RANK=str(rank)
    )
    random.seed(1_000 * number + rank)
    np.random.seed(1_000 * number + rank)
    torch.manual_seed(1_000 * number + rank)
    try:
        yield Ranks.from_environment()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
