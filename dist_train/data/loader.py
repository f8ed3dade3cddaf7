"""From samples to microbatches on the rank's device: one DataLoader for a whole session of the training."""

import atexit
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dist_train.config.schema import CustomData, DataConfig, LoaderConfig, RunConfig
from dist_train.config.shares import at_least
from dist_train.data.augment import Augment
from dist_train.data.batch import Microbatch
from dist_train.data.datasets.base import Splits
from dist_train.data.device_transform import DeviceTransform, Mix
from dist_train.data.failure import CapturedError
from dist_train.data.fetch import Fetch, Loaded, each_array, sample_name
from dist_train.data.sampler import LoadRequest, ShardedSampler
from dist_train.data.workers import number_of_workers, start_method, start_worker
from dist_train.errors import ExitCode, UserError
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
    sampler = train_sampler(config, splits.train, ranks)
    batches = (last_step - first_step) * len(sampler.share)
    workers = number_of_workers(config.loader, splits.train, device, ranks.local_world_size, batches)
    at_once = not workers and getattr(splits.train, "by_row", False) is True
    requests = (sampler.shares if at_once else sampler.microbatches)(first_step, last_step)
    source = replace(Source.of_training(config, splits, device, task), timing=timing or NullTiming())
    return by_step(Loading(source, requests, config.loader, workers), len(sampler.share))


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
    workers = number_of_workers(config.loader, dataset, device, local_world_size, len(numbers))
    source = Source.of_evaluation(config, dataset, device, task)
    with Loading(source, requests, config.loader, workers) as loading:
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
        raise UserError(f"none of {few} evaluation samples can be read; the first: {broken[0].reason}", ExitCode.DATA)
    return found


def _answers(source: "Source", requests: list[LoadRequest], config: RunConfig) -> list[Microbatch]:
    workers = min(1, number_of_workers(config.loader, source.dataset, source.device, 1, len(requests)))
    with Loading(source, requests, config.loader, workers) as loading:
        return [microbatch for [microbatch] in loading]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set, and everything that is done to its samples on the way to the model."""

    dataset: Any
    fetch: Fetch
    transform: Callable[[Any, Any, int, int], tuple[Any, Any]]
    device: torch.device
    task: Task | None
    timing: NullTiming = field(default_factory=NullTiming)

    @classmethod
    def of_training(cls, config: RunConfig, splits: Splits, device: torch.device, task: Task | None) -> "Source":
        classes = len(splits.classes) if splits.classes else None
        augment = Augment(config.augment, config.seed, getattr(config.task, "ignore_index", None) or 0)
        retry_s = config.loader.retry.seconds
        fetch = Fetch(splits.train, config.seed, augment, retry_s, config.data.on_error, _pad(config.data))
        mix = Mix.from_config(config.augment, config.seed, classes)
        transform = DeviceTransform(config.augment, device, mix)
        return cls(dataset=splits.train, fetch=fetch, transform=transform, device=device, task=task)

    @classmethod
    def of_evaluation(cls, config: RunConfig, dataset: Any, device: torch.device, task: Task | None) -> "Source":
        retry_s = config.loader.retry.seconds
        fetch = Fetch(dataset, config.seed, None, retry_s, config.eval.on_error, _pad(config.evaluated_data))
        transform = DeviceTransform(config.augment, device)
        return cls(dataset=dataset, fetch=fetch, transform=transform, device=device, task=task)

    @classmethod
    def of_own_loop(cls, dataset: Any, seed: int, training: bool, device: torch.device) -> "Source":
        """Samples as the data set gives them."""
        fetch = Fetch(dataset, seed, Augment((), seed) if training else None, LoaderConfig().retry.seconds, "stop")
        return cls(dataset=dataset, fetch=fetch, transform=lambda *given: given[:2], device=device, task=None)

    def microbatches(self, loaded: Loaded) -> Iterator[Microbatch]:
        """What was loaded, checked, on the device and ready for the model."""
        request, targets = loaded.request, loaded.targets
        # Here, on the CPU: on a GPU it would be too late to look at the targets.
        if self.task and (targets is not None or (self.task.needs_targets and len(request.indices))):
            targets = self.task.check_targets(targets, lambda row: sample_name(self.dataset, int(request.indices[row])))
        size = len(request.indices) // request.parts
        here = each_array(lambda tensor: tensor.to(self.device, non_blocking=True), (loaded.inputs, targets))
        for part in range(request.parts):
            rows, number = slice(part * size, (part + 1) * size), request.number + part
            inputs, targets = here if request.parts == 1 else each_array(partial(_cut, rows), here)
            if len(request.indices):
                inputs, targets = self.transform(inputs, targets, request.step, number)
            yield Microbatch(
                step=request.step,
                number=number,
                indices=torch.tensor(request.indices[rows]),
                inputs=inputs,
                targets=targets,
                broken=loaded.broken if part == 0 else (),
            )


def _pad(data: DataConfig) -> float | dict[str, float] | None:
    return data.pad if isinstance(data, CustomData) else None


def by_step(loading: "Loading", share: int) -> Iterator[list[Microbatch]]:
    ready: list[Microbatch] = []
    with loading:
        for microbatches in loading:
            ready += microbatches
            if len(ready) == share:
                yield ready
                ready = []


def _cut(rows: slice, tensor: Tensor) -> Tensor:
    """A copy, not a view: where a tensor begins in memory may decide in which order a kernel adds."""
    return tensor[rows].clone()


class Loading:
    """A DataLoader at work: iterate over it to get what was requested, in order, ready for the model; close it to end
    its processes."""

    def __init__(self, source: Source, requests: Iterable[LoadRequest], config: LoaderConfig, workers: int) -> None:
        pins = config.pin_memory and source.device.type == "cuda"
        how = start_method(source.device) if workers else None
        if how == "fork":
            source.fetch.prepare()
        loader: Iterable[Any] = DataLoader(
            source.fetch,
            batch_sampler=requests,  # type: ignore[arg-type]  # torch asks for lists of indices, and needs none
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pins,
            generator=torch.Generator(),  # otherwise it would draw from the global one
            prefetch_factor=config.prefetch if workers else None,
            multiprocessing_context=how,
            worker_init_fn=partial(_start, stacks=stacks()) if workers else None,
        )
        if not workers and not pins:  # a DataLoader would do this, and take a fifth of a millisecond for it
            loader = map(source.fetch.__getitems__, requests)
        self._source = source
        others = set(multiprocessing.active_children())
        self._batches: Any = iter(loader)
        self._workers = [process for process in multiprocessing.active_children() if process not in others]
        # Its processes ignore SIGTERM. At exit, multiprocessing would send them one and wait for them forever.
        atexit.register(self.close)

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
        """Ends the loading processes; what they had ready is lost."""
        atexit.unregister(self.close)
        # Dropping the iterator would do the same, but not while a traceback still holds it.
        getattr(self._batches, "_shutdown_workers", lambda: None)()
        for process in self._workers:
            if process.is_alive():  # stuck in the user's code
                process.kill()
            process.join()


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
