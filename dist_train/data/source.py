"""A data set, and what is done to its samples on the way to the model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from dist_train.config.schema import CustomData, DataConfig, LoaderConfig, RunConfig
from dist_train.data.augment import Augment
from dist_train.data.batch import Microbatch
from dist_train.data.datasets.base import Splits
from dist_train.data.device_transform import DeviceTransform, Mix, is_bytes
from dist_train.data.fetch import Fetch, sample_name
from dist_train.data.loaded import Loaded, each_array
from dist_train.data.workers import number_of_workers
from dist_train.tasks.base import Task
from dist_train.timing import NullTiming


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

    def number_of_workers(self, config: LoaderConfig, ranks_here: int, batches: int) -> int:
        """Loading processes for one of the ranks of this machine."""
        may_thread = self.fetch.may_thread
        return number_of_workers(config, self.dataset, self.device, ranks_here, batches, may_thread)

    def microbatches(self, loaded: Loaded) -> Iterator[Microbatch]:
        """What was loaded, checked, on the device and ready for the model."""
        request, targets = loaded.request, loaded.targets
        # Here, on the CPU: on a GPU it would be too late to look at the targets.
        if self.task and (targets is not None or (self.task.needs_targets and len(request.indices))):
            targets = self.task.check_targets(targets, lambda row: sample_name(self.dataset, int(request.indices[row])))
        size = len(request.indices) // request.parts
        here = self._on_device((loaded.inputs, targets))
        becomes_floats = isinstance(self.transform, DeviceTransform) and is_bytes(here[0])
        for part in range(request.parts):
            rows, number = slice(part * size, (part + 1) * size), request.number + part
            if becomes_floats:  # in memory of their own
                inputs, targets = here[0][rows], each_array(partial(_cut, rows), here[1])
            else:
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

    def _on_device(self, batch: Any) -> Any:
        """On a GPU the copy goes beside what is computed there. torch keeps the page-locked memory, and that of the
        copy, until the streams are past them."""
        if self.device.type != "cuda":
            return each_array(lambda tensor: tensor.to(self.device), batch)
        main = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            there = each_array(lambda tensor: tensor.to(self.device, non_blocking=True), batch)
        main.wait_stream(self._copies)
        each_array(lambda tensor: tensor.record_stream(main), there)
        return there

    @cached_property
    def _copies(self) -> Any:
        return torch.cuda.Stream(self.device)


def _pad(data: DataConfig) -> float | dict[str, float] | None:
    return data.pad if isinstance(data, CustomData) else None


def _cut(rows: slice, tensor: Tensor) -> Tensor:
    """A copy, not a view: where a tensor begins in memory may decide in which order a kernel adds."""
    return tensor[rows].clone()
