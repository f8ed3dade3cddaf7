"""Writes saves, in this process or in one that does nothing else. No torch here, so that it starts at once.

It is a process because a thread would hold Python's lock against the training while it hashes. It belongs to no process
group, is started by the first save that needs it, and cannot outlive the rank: the kernel kills it when the rank dies,
and it ends when its pipe closes.
"""

import mmap
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dist_train.checkpoint.store import CheckpointStore
from dist_train.errors import UserError
from dist_train.rundir.process_id import end_with_parent

_ROOT = Path(__file__).resolve().parents[2]
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to stop. A terminal or a scheduler sends them to its children too; only the rank acts."""
_EXIT_TIMEOUT_S = 5.0
"""Seconds for an idle writer to end."""


@dataclass(frozen=True, kw_only=True)
class Save:
    """One checkpoint to write.

    Attributes:
        parts: for each file in the shared memory, its first byte and its length.
        others: the content of the small files.
        facts: for the manifest; retention keeps its `best_step`, besides the newest.
        also: further steps that it keeps.
    """

    step: int
    parts: Mapping[str, tuple[int, int]]
    others: Mapping[str, bytes]
    facts: Mapping[str, Any]
    also: tuple[int, ...] = ()


class WriterLost(Exception):
    """The writing process is gone, or does not finish; the message says how."""


class WriterKilled(WriterLost):
    """The writing process was killed, by no fault of the disk. What it was to write is still in the shared memory."""


def save_and_retain(save: Save, store: CheckpointStore, memory: memoryview) -> Path:
    """Writes a checkpoint and then removes what retention does not keep; returns where it lies, durable.

    Raises:
        OSError: when the disk refuses.
        UserError: (exit 3) when the run belongs to another session now.
    """
    parts = {name: memory[begin : begin + length] for name, (begin, length) in save.parts.items()}
    path = store.save(save.step, {**parts, **save.others}, save.facts)
    store.retain(save.facts["best_step"], save.also)
    return path


class Writer:
    """The process that writes, one save at a time. To be made in the rank's main thread: the kernel ends the process
    with the thread that made it.

    Args:
        store: the process uses a copy of it.
        memory: descriptor of the memory that saves lie in.
    """

    def __init__(self, store: CheckpointStore, memory: int) -> None:
        self._connection, theirs = Pipe()
        arguments = [str(theirs.fileno()), str(memory), str(os.getpid())]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # inherited: no signal meets the process unprepared
        try:
            self._process = subprocess.Popen(
                # Without site-packages and what they run at the start: 0.1 s until it writes.
                [sys.executable, "-SPc", "from dist_train.checkpoint.writer import main; main()", *arguments],
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._connection.send(store)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return not self._connection.closed and self._process.poll() is None

    def begin(self, save: Save) -> None:
        """Hands a save over. Its memory belongs to the writer until `result`.

        Raises:
            WriterLost: when it is gone.
        """
        try:
            self._connection.send(save)
        except OSError:
            raise self._lost() from None

    def is_done(self) -> bool:
        """Whether `result` would answer at once."""
        return self._connection.poll()

    def result(self, seconds: float) -> Path:
        """Where the save that was handed over lies, once it is durable.

        Raises:
            WriterLost: when it is gone, or has not finished after `seconds`; it is ended then.
            OSError, UserError: as `save_and_retain` raised it.
        """
        if not self._connection.poll(seconds):
            self.kill()
            raise WriterLost(f"not done after {seconds:g} s")
        try:
            outcome = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def end(self) -> None:
        """Ends it when it has nothing to do."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self._connection.send(None)
            self._process.wait(_EXIT_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """Ends it whatever it does. A save that is under way is not committed then."""
        self._process.kill()
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):  # it dies when a disk that hangs lets go of it; we go on
            self._process.wait(_EXIT_TIMEOUT_S)

    def _lost(self) -> WriterLost:
        self.kill()
        code = self._process.returncode
        if code is not None and code < 0:
            return WriterKilled(f"its process was killed by {signal.Signals(-code).name}")
        return WriterLost(f"its process ended with {code}")


# ---------------------------------------------------------------- in the process


def main() -> None:
    """Writes what comes through the pipe until it closes."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    pipe, memory, rank = map(int, sys.argv[1:])
    end_with_parent(rank)
    connection = Connection(pipe)
    store = connection.recv()
    with suppress(EOFError, ConnectionResetError):
        while (save := connection.recv()) is not None:
            connection.send(_outcome(save, store, memory))


def _outcome(save: Save, store: CheckpointStore, memory: int) -> Path | Exception:
    try:
        mapped = mmap.mmap(memory, 0, mmap.MAP_SHARED, mmap.PROT_READ)  # anew each time: the state may have grown
        return save_and_retain(save, store, memoryview(mapped))
    except Exception as error:
        if not isinstance(error, OSError | UserError):
            error.add_note(f"In the process that writes checkpoints:\n{traceback.format_exc()}")
        return error
