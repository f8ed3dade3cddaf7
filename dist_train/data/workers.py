"""The loading processes of a rank: how many, how they start, and that none outlives its rank."""

import ctypes
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from typing import Any

import torch

from dist_train.config.schema import LoaderConfig

_PR_SET_PDEATHSIG = 1
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
    """How loading processes come to be.

    `fork` on a CPU: at once, and the data set is shared. With CUDA `forkserver`: a process forked beside a CUDA context
    and NCCL's threads may lock up (DistributedDataParallel's documentation warns of it), so it comes from a clean one.
    """
    if device.type == "cpu":
        return "fork"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["dist_train.data.fetch"])
    return "forkserver"


def start_worker(number: int) -> None:
    """Runs first in every loading process.

    The signals that ask a run to stop are the rank's to answer, which needs batches until all ranks agree on the last
    step; they reach its children too, from a terminal or a scheduler.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # else a signal here would wake the rank, through the inherited pipe
    torch.set_num_threads(1)
    _end_with_the_rank()


def _end_with_the_rank() -> None:
    """The kernel kills this process when its parent dies; where that is a fork server, a thread watches the rank."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = multiprocessing.parent_process()
    if rank is not None and os.getppid() != rank.pid:  # also when the rank died before prctl
        threading.Thread(target=_end_after, args=(rank.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
