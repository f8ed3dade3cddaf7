"""From samples to microbatches on the rank's device: one loader for a whole session of the training."""

import atexit
import multiprocessing
import os
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dist_train.config.schema import LoaderConfig, RunConfig
from dist_train.config.shares import at_least
from dist_train.data.ahead import Ahead, Load
from dist_train.data.batch import Microbatch
from dist_train.data.datasets.base import Splits
from dist_train.data.failure import CapturedError
from dist_train.data.loaded import Loaded
from dist_train.data.sampler import LoadRequest, ShardedSampler
from dist_train.data.source import Source
from dist_train.data.workers import free_cores, number_of_threads, start_method, start_worker
from dist_train.errors import DataError
from dist_train.heartbeat import stacks
from dist_train.parallel.ranks import Ranks
from dist_train.tasks.base import Task
from dist_train.timing import NullTiming


def train_batches(
    config: RunConfig,
    splits: Splits,
    ranks: Ranks,
    device: torch.device,
    first_step: int,
    last_step: int,
    task: Task | None = None,
    timing: NullTiming | None = None,
) -> Iterator[list[Microbatch]]:
    """This rank's microbatches, ready for the model, for each step in [first_step, last_step), across epochs.

    The loading processes start at once and end with the iterator.

    Args:
        task: checks the targets; without one, all are accepted.
        timing: is told how long it takes.

    Raises:
        UserError: at once when the training set does not fill a global batch, later when a sample can't be read.
    """
    sampler, here = train_sampler(config, splits.train, ranks), ranks.local_world_size
    batches = (last_step - first_step) * len(sampler.share)
    source = replace(Source.of_training(config, splits, device, task), timing=timing or NullTiming())
    workers = source.number_of_workers(config.loader, here, batches)
    at_once = not workers and getattr(splits.train, "by_row", False) is True
    requests = (sampler.shares if at_once else sampler.microbatches)(first_step, last_step)
    return by_step(Loading(source, requests, config.loader, workers, here), len(sampler.share))


def train_sampler(config: RunConfig, dataset: Any, ranks: Ranks) -> ShardedSampler:
    """The order of the training samples, and this rank's share of it."""
    return ShardedSampler(
        dataset,
        global_batch=config.batch.global_size,
        microbatches=at_least(config, ranks.world_size),
        num_replicas=ranks.world_size,
        rank=ranks.rank,
        seed=config.seed,
    )


def number_of_batches(samples: int, batch_size: int) -> int:
    """Batches that an evaluation set is cut into; the last one may be smaller."""
    return -(-samples // batch_size)


def evaluation_batches(
    config: RunConfig,
    dataset: Any,
    numbers: Sequence[int],
    device: torch.device,
    local_world_size: int = 1,
    task: Task | None = None,
) -> Iterator[tuple[int, Microbatch]]:
    """The batches `numbers` of an evaluation set, in that order.

    Batch k has the samples [k·b, min((k+1)·b, N)) with b = eval.batch_size: together all of them, each once.
    """
    size = config.eval.batch_size
    indices = ((number, np.arange(number * size, min((number + 1) * size, len(dataset)))) for number in numbers)
    requests = (LoadRequest(step=0, number=number, parts=1, epoch=0, indices=rows) for number, rows in indices)
    source = Source.of_evaluation(config, dataset, device, task)
    workers = source.number_of_workers(config.loader, local_world_size, len(numbers))
    with Loading(source, requests, config.loader, workers, local_world_size) as loading:
        for [microbatch] in loading:
            yield microbatch.number, microbatch


def training_samples(
    config: RunConfig, splits: Splits, task: Task, device: torch.device, steps: Sequence[int]
) -> list[Microbatch]:
    """The first microbatch of each of `steps`, as in a training: if it has loading processes, one of them reads these
    too, since a data set may open its files once in a process.

    Args:
        config: with its number of microbatches settled.

    Raises:
        UserError: when one can't be read, or the task can't learn from it.
    """
    sampler = train_sampler(config, splits.train, Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, node=0))
    requests = [next(sampler.microbatches(step, step + 1)) for step in steps]
    return _answers(Source.of_training(config, splits, device, task), requests, config)


def evaluation_samples(
    config: RunConfig, splits: Splits, task: Task, device: torch.device, most: int, times: int
) -> list[Microbatch]:
    """At most `most` samples, spread over the evaluation split, as one batch that is read `times` times. The first
    samples might all be of one class. Raises as `training_samples` does."""
    few = min(config.eval.batch_size, most, len(splits.evaluation))
    spread = np.arange(few) * len(splits.evaluation) // max(few, 1)
    requests = [LoadRequest(step=0, number=0, parts=1, epoch=0, indices=spread)] * times
    found = _answers(Source.of_evaluation(config, splits.evaluation, device, task), requests, config)
    if (broken := found[0].broken) and len(broken) == few:
        raise DataError(f"none of {few} evaluation samples can be read; the first: {broken[0].reason}")
    return found


def _answers(source: Source, requests: list[LoadRequest], config: RunConfig) -> list[Microbatch]:
    workers = min(1, source.number_of_workers(config.loader, 1, len(requests)))
    with Loading(source, requests, config.loader, workers) as loading:
        return [microbatch for [microbatch] in loading]


def by_step(loading: "Loading", share: int) -> Iterator[list[Microbatch]]:
    ready: list[Microbatch] = []
    with loading:
        for microbatches in loading:
            ready += microbatches
            if len(ready) == share:
                yield ready
                ready = []


class Loading:
    """A DataLoader or threads at work: iterate over it to get what was requested, in order, ready for the model; close
    it to end its processes and threads.

    Args:
        ranks_here: of the machine, which share its cores.
    """

    def __init__(
        self, source: Source, requests: Iterable[LoadRequest], config: LoaderConfig, workers: int, ranks_here: int = 1
    ) -> None:
        self._source = source
        self._pins = config.pin_memory and source.device.type == "cuda"
        others = set(multiprocessing.active_children())
        self._batches: Any = (
            iter(self._processes(requests, config, workers)) if workers else self._threads(requests, config, ranks_here)
        )
        self._workers = [process for process in multiprocessing.active_children() if process not in others]
        # Its processes ignore SIGTERM. At exit, multiprocessing would send them one and wait for them forever.
        atexit.register(self.close)

    def _processes(self, requests: Iterable[LoadRequest], config: LoaderConfig, workers: int) -> DataLoader:
        how = start_method(self._source.device)
        if how == "fork":
            self._source.fetch.prepare()
        return DataLoader(
            self._source.fetch,
            batch_sampler=requests,  # type: ignore[arg-type]  # torch asks for lists of indices, and needs none
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=self._pins,
            generator=torch.Generator(),  # otherwise it would draw from the global one
            prefetch_factor=config.prefetch,
            multiprocessing_context=how,
            worker_init_fn=partial(_start, stacks=stacks()),
        )

    def _threads(self, requests: Iterable[LoadRequest], config: LoaderConfig, ranks_here: int) -> Ahead:
        source = self._source
        threads = number_of_threads(config, source.dataset, source.fetch.may_thread)
        if threads != 0:
            source.fetch.prepare()
        free = free_cores(source.device, ranks_here)
        return Ahead(self._of_thread, _seconds, requests, threads, free, config.prefetch)

    def _of_thread(self, stopped: threading.Event) -> Load:
        fetch = self._source.fetch.of_thread(stopped)

        def load(request: LoadRequest) -> Loaded | CapturedError:
            loaded = fetch.__getitems__(request)
            return loaded.pin_memory() if self._pins and isinstance(loaded, Loaded) else loaded

        return load

    def __enter__(self) -> "Loading":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[Microbatch]]:
        """The microbatches of each request. Raises what the data set raised instead, by its name and words."""
        timing = self._source.timing
        timing.lap("other")
        for answer in self._batches:
            timing.lap("input")
            if isinstance(answer, CapturedError):
                raise answer.as_exception()
            microbatches = list(self._source.microbatches(answer.unpacked()))
            timing.add_loaded(answer.seconds, len(answer.request.indices))
            timing.lap("transfer")
            yield microbatches
            timing.lap("other")

    def close(self) -> None:
        """Ends what loads; what was ready is lost."""
        atexit.unregister(self.close)
        if isinstance(self._batches, Ahead):
            self._batches.close()
        # Dropping the iterator would do the same, but not while a traceback still holds it.
        getattr(self._batches, "_shutdown_workers", lambda: None)()
        for process in self._workers:
            if process.is_alive():  # stuck in the user's code
                process.kill()
            process.join()


def _seconds(answer: Loaded | CapturedError) -> tuple[float, float] | None:
    """In which loading has waited for storage, and computed."""
    return (answer.seconds[0], sum(answer.seconds[1:])) if isinstance(answer, Loaded) else None


def _start(number: int, stacks: tuple[str, int] | None) -> None:
    """Runs first in every loading process; `stacks` as start_worker takes it."""
    start_worker(number, stacks)
    Queue._on_queue_feeder_error = staticmethod(_cannot_answer)  # type: ignore[attr-defined]


def _cannot_answer(error: BaseException, answer: Any) -> None:
    """Ends the process if it cannot send an answer, for lack of descriptors, say: the rank would wait forever."""
    traceback.print_exception(error)
    os._exit(1)


def _as_it_is(loaded: Any) -> Any:
    return loaded
