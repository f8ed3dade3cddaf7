"""Threads of a rank that load while it computes. What they run lets go of Python's lock: decoders, copies, reads."""

import math
import os
import statistics
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import cache
from itertools import islice
from queue import SimpleQueue
from typing import Any

from dist_train.data.sampler import LoadRequest

MOST = 8
"""Threads; more rarely load faster."""
_TRIAL = 4
"""Requests that are loaded in the step before it is settled how many threads pay. The first one does not count: what a
process does once is in it."""
_WORTH = 0.05
"""Share of a step's time below which loading is left in it: a thread costs its handing over."""
_WAITS = 0.2
"""Share of loading that is waiting for storage, from which on a thread pays that has no core of its own."""
_END_S = 5.0
"""For a thread to end; one that is stuck in the kernel cannot be ended."""
_LOOK_S = 0.001
_FORK_S = 2.0
"""For a thread to be done with what it is at, before this process is forked."""

Load = Callable[[LoadRequest], Any]


class Ahead(Iterator[Any]):
    """Answers to requests, in their order, from threads that work ahead of who takes them.

    Args:
        load_of: makes what loads, for a thread that ends when the event is set.
        seconds_of: of an answer, those that loading has waited and computed; None of one that failed.
        threads: how many; 0 loads when an answer is taken; None finds out by the first requests.
        free: cores that the rank does not compute on.
        prefetch: requests that each thread keeps ready.
    """

    def __init__(
        self,
        load_of: Callable[[threading.Event], Load],
        seconds_of: Callable[[Any], tuple[float, float] | None],
        requests: Iterable[LoadRequest],
        threads: int | None,
        free: int,
        prefetch: int,
    ) -> None:
        self._load_of, self._seconds_of, self._free, self._prefetch = load_of, seconds_of, free, prefetch
        self._requests = iter(requests)
        self._stopped = threading.Event()
        self._load = load_of(self._stopped)
        self._jobs: SimpleQueue[tuple[Future[Any], LoadRequest] | None] = SimpleQueue()
        self._ready: deque[Future[Any]] = deque()
        self._threads: list[tuple[threading.Thread, threading.Lock]] = []
        self._trial: list[tuple[float, float, float]] | None = [] if threads is None else None
        self._ended: float | None = None
        self._rests = False
        self._resting: list[threading.Lock] = []
        self._start(threads or 0)

    def __next__(self) -> Any:
        if self._trial is not None:
            return self._tried(self._trial)
        if not self._threads:
            return self._load(next(self._requests))
        self._ask()
        if not self._ready:
            raise StopIteration
        answer = self._ready.popleft().result()
        self._ask()
        return answer

    def close(self) -> None:
        """Ends the threads; what they had ready is lost."""
        self._stopped.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread, _ in self._threads:
            if thread is not threading.current_thread():
                thread.join(_END_S)
        self._threads.clear()
        self._ready.clear()

    def _tried(self, trial: list[tuple[float, float, float]]) -> Any:
        request, begun = next(self._requests), time.perf_counter()
        answer = self._load(request)
        seconds = self._seconds_of(answer)
        if self._ended is not None and seconds is not None:
            trial.append((*seconds, begun - self._ended))
        self._ended = time.perf_counter()
        if len(trial) == _TRIAL - 1:
            self._trial = None
            waited, worked, rest = map(statistics.median, zip(*trial, strict=True))
            self._start(threads_that_pay(waited, worked, rest, self._free))
        return answer

    def _start(self, threads: int) -> None:
        for number in range(threads):
            at_work = threading.Lock()
            thread = threading.Thread(target=self._work, args=(at_work,), name=f"loading {number}", daemon=True)
            self._threads.append((thread, at_work))
            thread.start()
        if threads:
            _rest_at_forks().add(self)

    def _ask(self) -> None:
        missing = len(self._threads) * self._prefetch + 1 - len(self._ready)
        for request in islice(self._requests, max(0, missing)):
            self._ready.append(Future())
            self._jobs.put((self._ready[-1], request))

    def _work(self, at_work: threading.Lock) -> None:
        load = self._load_of(self._stopped)
        while (job := self._jobs.get()) is not None and not self._stopped.is_set():
            future, request = job
            while self._rests:  # else this thread would take its lock again before who waits for it does
                time.sleep(_LOOK_S)
            with at_work:
                try:
                    future.set_result(load(request))
                except BaseException as error:  # the rank raises it
                    future.set_exception(error)
            del job, future  # an answer belongs to who takes it

    def rest(self) -> None:
        """Waits until no thread is at work, and lets none begin until `go_on`."""
        self._rests = True
        self._resting = [at_work for _, at_work in self._threads if at_work.acquire(timeout=_FORK_S)]

    def go_on(self) -> None:
        for at_work in self._resting:
            at_work.release()
        self._rests = False


def threads_that_pay(waited: float, worked: float, rest: float, free: int) -> int:
    """How many threads to load with.

    Args:
        waited, worked: seconds in which loading a request waits for storage, and computes.
        rest: seconds from one request to the next, without those.
        free: cores that the rank does not compute on. Without one, a thread would only take turns with the rank.
    """
    if waited + worked < _WORTH * (waited + worked + rest):
        return 0
    waiting = math.ceil(waited / max(rest, worked, 1e-9)) if waited > _WAITS * (waited + worked) else 0
    return min(MOST, max(free, 0) + waiting)


@cache
def _rest_at_forks() -> "weakref.WeakSet[Ahead]":
    """Those whose threads rest while this process is forked: a forked process has the locks that they hold, of imports
    and libraries, and nobody to release them."""
    all_of_them: weakref.WeakSet[Ahead] = weakref.WeakSet()
    resting: list[Ahead] = []

    def before() -> None:
        resting.extend(all_of_them)
        for one in resting:
            one.rest()

    def after() -> None:
        while resting:
            resting.pop().go_on()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)
    return all_of_them
