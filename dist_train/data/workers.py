"""The loading processes of a rank: how many there are, how they start, and how they end with it."""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

import torch

from dist_train.config.schema import LoaderConfig

_PR_SET_PDEATHSIG = 1
THE_RANKS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a rank answers, for itself and its loading processes."""
_MOST = 8
"""For `auto`: more of them rarely load faster, and each takes memory."""


def number_of_workers(
    config: LoaderConfig, dataset: Any, device: torch.device, ranks_here: int, batches: int, may_thread: bool = False
) -> int:
    """Loading processes for one of `ranks_here` ranks; never more than there are batches to load.

    `auto` is 0 for data held in memory, and where threads load. Otherwise it is the rank's share of the machine's
    cores, without the core that a rank on a CPU computes on itself, and at most 8.
    """
    if getattr(dataset, "is_resident", False) is True:
        return 0
    if config.workers != "auto":
        return min(config.workers, batches)
    if getattr(dataset, "in_memory", False) or (may_thread and config.threads != 0):
        return 0
    cores = len(os.sched_getaffinity(0)) // ranks_here
    spare = cores - 1 if device.type == "cpu" else max(cores, 1)
    return max(0, min(spare, _MOST, batches))


def number_of_threads(config: LoaderConfig, dataset: Any, may_thread: bool) -> int | None:
    """Threads for a rank without loading processes; None where the first requests have to tell."""
    if not may_thread or getattr(dataset, "is_resident", False) is True:
        return 0
    return None if config.threads == "auto" else config.threads


def free_cores(device: torch.device, ranks_here: int) -> int:
    """Of the rank's share of the machine's cores, those that it does not compute on, or drive a GPU with."""
    own = torch.get_num_threads() if device.type == "cpu" else 1
    return len(os.sched_getaffinity(0)) // ranks_here - own


def start_method(device: torch.device) -> str:
    """How loading processes are started; starts the fork server where they need one.

    On a CPU it is `fork`, which is immediate and shares the data set. With CUDA it is `forkserver`: a process forked
    beside a CUDA context and NCCL's threads may lock up, as DistributedDataParallel's documentation warns.
    """
    if device.type == "cpu":
        return "fork"
    _start_server()
    return "forkserver"


def _start_server() -> None:
    """Starts the server, and the process that tracks its files, with the rank's signals blocked, which exec inherits:
    a signal that is sent to all of a rank's processes would end them. Then the rank unblocks its own again.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["dist_train.data.fetch"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, THE_RANKS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, THE_RANKS)  # it has let some through
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(number: int, stacks: tuple[str, int] | None = None) -> None:
    """Runs first in every loading process.

    It ignores the signals that ask a run to stop, which a terminal or a scheduler sends to it too: the rank answers
    them, and needs batches until all ranks agree on the last step.

    Args:
        number: of the process.
        stacks: the rank's own file for stacks and the signal that asks for them; a forked process has both already.
    """
    for ignored in THE_RANKS:
        signal.signal(ignored, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # otherwise a signal here would wake the rank through the inherited pipe
    torch.set_num_threads(1)
    _end_with_the_rank()
    if _is_served():
        faulthandler.disable()  # torch's handlers have replaced its own
        faulthandler.enable(file=2)
        if stacks is not None:
            faulthandler.register(stacks[1], file=os.open(stacks[0], os.O_WRONLY | os.O_APPEND), all_threads=True)


def _is_served() -> bool:
    """Whether this process was forked by a fork server."""
    rank = multiprocessing.parent_process()
    return rank is not None and os.getppid() != rank.pid


def _end_with_the_rank() -> None:
    """Has the kernel kill this process when its parent dies; where that is a fork server, a thread watches the rank."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = multiprocessing.parent_process()
    if rank is not None and _is_served():  # also when the rank died before prctl
        threading.Thread(target=_end_after, args=(rank.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
