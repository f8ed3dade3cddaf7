"""Runs the sums of gradients while the backward goes on, and bounds how far the host runs ahead of the GPU."""

import queue
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future


class SideThread:
    """Runs the sums one after another beside the backward, in the same order on every rank."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Any, Future[Tensor]] | None] = queue.SimpleQueue()
        self._before: Future[Tensor] | None = None
        """The future of the last sum that the thread was given."""
        self._thread = threading.Thread(target=self._run, name="exact-sum", daemon=True)
        self._thread.start()

    def submit(self, work: Any, *, is_last: bool = False) -> Future[Tensor]:
        """`is_last`: the backward is over except for this sum, so there is nothing for it to run beside."""
        future: Future[Tensor] = Future()
        if is_last:  # to wake the other thread, and to be woken, would take as long
            if self._before is not None:
                _settled(self._before)
            self._before = None
            _do(work, future)
        else:
            self._before = future
            self._work.put((work, future))
        return future

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            _do(*item)

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()


def _do(work: Any, future: Future[Tensor]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # it is raised where the main thread waits
        future.set_exception(error)  # type: ignore[arg-type]


def _settled(future: Future[Tensor]) -> None:
    """Waits until it is done. If it has failed, DDP raises the error: it waits for all futures in their order."""
    with suppress(Exception):
        future.wait()


class SideStream:
    """Runs the sums on a CUDA stream beside the backward; waiting for the future waits for the stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def submit(self, work: Any, *, is_last: bool = False) -> Future[Tensor]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        future: Future[Tensor] = Future(devices=[self._device])
        with torch.cuda.stream(self._stream):
            future.set_result(work())
        return future

    def close(self) -> None:
        pass


class Leash:
    """Bounds how far the host runs ahead of the GPU, so that a GPU that hangs is noticed within a few steps, and no
    later wait is longer than those steps."""

    AHEAD = 2
    """Steps that may be under way: enough that the GPU never waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: deque[torch.cuda.Event] = deque()

    def step(self) -> None:
        """To be called when a step's work is queued. Waits until the GPU has done the step before the last two."""
        if self._device.type != "cuda":
            return
        end = torch.cuda.Event()
        end.record(torch.cuda.current_stream(self._device))
        self._ends.append(end)
        if len(self._ends) > self.AHEAD:
            self._ends.popleft().synchronize()
