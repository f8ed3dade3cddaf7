"""The loading processes of a rank: how many, how they start, and that none outlives its rank."""

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
"""Of `auto`: more of them rarely load faster, and each has memory of its own."""


def number_of_workers(config: LoaderConfig, dataset: Any, device: torch.device, ranks_here: int, batches: int) -> int:
    """Loading processes for one of `ranks_here` ranks; never more than there are batches to load.

    `auto` is 0 for data held in memory; else the machine's cores divided among its ranks, without the one that the rank
    itself computes on where it computes on a CPU, and at most 8.
    """
    if config.workers != "auto":
        return min(config.workers, batches)
    if getattr(dataset, "in_memory", False):
        return 0
    cores = len(os.sched_getaffinity(0)) // ranks_here
    spare = cores - 1 if device.type == "cpu" else max(cores, 1)
    return max(0, min(spare, _MOST, batches))


def start_method(device: torch.device) -> str:
    """How loading processes come to be; with the server that they come from, where there is one.

    `fork` on a CPU: at once, and the data set is shared. With CUDA `forkserver`: a process forked beside a CUDA context
    and NCCL's threads may lock up (DistributedDataParallel's documentation warns of it), so it comes from a clean one.
    """
    if device.type == "cpu":
        return "fork"
    _start_server()
    return "forkserver"


def _start_server() -> None:
    """The server, and the process that tracks its files, are born with the rank's signals blocked, which outlasts the
    change of program: one that is sent to all of a rank's processes would end them. The rank gets its own afterwards.
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

    The signals that ask a run to stop are the rank's to answer, which needs batches until all ranks agree on the last
    step; they reach its children too, from a terminal or a scheduler.

    Args:
        number: of the process.
        stacks: the rank's own file for stacks and the signal that asks for them; a forked process has both already.
    """
    for ignored in THE_RANKS:
        signal.signal(ignored, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # else a signal here would wake the rank, through the inherited pipe
    torch.set_num_threads(1)
    _end_with_the_rank()
    if _is_served():
        faulthandler.disable()  # torch's handlers have put it out of work
        faulthandler.enable(file=2)
        if stacks is not None:
            faulthandler.register(stacks[1], file=os.open(stacks[0], os.O_WRONLY | os.O_APPEND), all_threads=True)


def _is_served() -> bool:
    """Whether it comes from a fork server."""
    rank = multiprocessing.parent_process()
    return rank is not None and os.getppid() != rank.pid


def _end_with_the_rank() -> None:
    """The kernel kills this process when its parent dies; where that is a fork server, a thread watches the rank."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = multiprocessing.parent_process()
    if rank is not None and _is_served():  # also when the rank died before prctl
        threading.Thread(target=_end_after, args=(rank.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
