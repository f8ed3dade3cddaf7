"""Samples for a script with its own loop, where DataLoader and DistributedSampler stood."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dist_train.data.sampler import LoadRequest, ShardedSampler
from dist_train.errors import UserError
from dist_train.exact.model import own_share
from dist_train.exact.world import world
from dist_train.randomness import key, seed_all

if TYPE_CHECKING:
    from dist_train.data.batch import Microbatch
    from dist_train.data.loader import Loading


class Loader:
    """Steps of a data set, one after another, through the ends of epochs, each shuffled anew by (seed, epoch): the
    same samples for any number of ranks. Each step is the list of this rank's microbatches, on the rank's device,
    for `parallel.each`; a microbatch has its `step`, `number`, `inputs`, `targets` and `indices`.

    Attributes:
        steps_per_epoch: what no longer fills a global batch is left out of an epoch.
        total_steps: the step at which it ends.

    Args:
        dataset: has `len` and gives (input, target), or a dict of inputs, for an index; what it draws from the global
            generators is keyed by (seed, epoch, index). Its `collate`, where it has one, stacks samples.
        global_batch: samples in a step of all ranks together, a multiple of `microbatches`.
        microbatches: V, as exact.DistributedDataParallel has it.
        workers: loading processes of each rank; 0 loads in the rank itself.
        epochs, steps: how long a training is, one of them; without both it is an epoch.
        start: steps that are done already, as exact.resume tells them.

    Raises:
        UserError: when these do not fit each other.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        global_batch: int,
        microbatches: int = 8,
        seed: int = 0,
        workers: int = 0,
        epochs: int | None = None,
        steps: int | None = None,
        start: int = 0,
    ) -> None:
        own_share(microbatches)
        _check_counts("exact.loader", global_batch=(global_batch, 1), workers=(workers, 0), start=(start, 0))
        _check_counts("exact.loader", **{n: (v, 0) for n, v in (("epochs", epochs), ("steps", steps)) if v is not None})
        if epochs is not None and steps is not None:
            raise UserError(f"exact.loader: epochs={epochs} and steps={steps}: give one of them")
        size = _size(dataset, "exact.loader")
        if global_batch % microbatches or global_batch > size:
            raise UserError(
                f"exact.loader: global_batch={global_batch}, for {microbatches} microbatches and {size:,} samples: it "
                "is a multiple of the microbatches, and at most the samples"
            )
        ranks = world().group.ranks
        self._dataset, self._seed, self._workers, self._start = dataset, seed, workers, start
        self._sampler = ShardedSampler(
            dataset,
            global_batch=global_batch,
            microbatches=microbatches,
            num_replicas=ranks.world_size,
            rank=ranks.rank,
            seed=seed,
        )
        self.steps_per_epoch = self._sampler.steps_per_epoch
        self.total_steps = steps if steps is not None else (1 if epochs is None else epochs) * self.steps_per_epoch

    def __len__(self) -> int:
        """Steps from `start` to the end."""
        return max(0, self.total_steps - self._start)

    def __iter__(self) -> Iterator[list["Microbatch"]]:
        """Raises what the data set raises, or UserError (exit 10) for samples that are no pair and no dict."""
        from dist_train.data.loader import by_step

        requests = self._sampler.microbatches(self._start, max(self._start, self.total_steps))
        share = len(self._sampler.share)
        return by_step(_loading(self._dataset, self._seed, True, requests, self._workers, len(self) * share), share)


def evaluation_loader(dataset: Any, batch_size: int, *, seed: int = 0, workers: int = 0) -> Iterator["Microbatch"]:
    """This rank's batches of a data set, in its order: over all ranks each sample once, nothing padded. Each has its
    `number`, `inputs`, `targets` and `indices`, and is made of the same samples for any number of ranks; exact.sum adds
    up what is found. The generators are seeded by (seed, number) before each.

    Raises:
        UserError: when batch_size or workers is no such number.
    """
    _check_counts("exact.evaluation_loader", batch_size=(batch_size, 1), workers=(workers, 0))
    size = _size(dataset, "exact.evaluation_loader")
    return _evaluation_batches(dataset, size, batch_size, seed, workers)


def _evaluation_batches(dataset: Any, size: int, batch: int, seed: int, workers: int) -> Iterator["Microbatch"]:
    ranks, count = world().group.ranks, -(-size // batch)
    own = range(ranks.rank * count // ranks.world_size, (ranks.rank + 1) * count // ranks.world_size)
    requests = [LoadRequest(0, k, 1, 0, np.arange(k * batch, min((k + 1) * batch, size))) for k in own]
    try:
        with _loading(dataset, seed, False, requests, workers, len(own)) as loading:
            for [microbatch] in loading:
                seed_all(key(seed, "evaluation", microbatch.number))
                yield microbatch
    finally:
        seed_all(key(seed, "after the evaluation"))


def _loading(dataset: Any, seed: int, training: bool, requests: Any, workers: int, batches: int) -> "Loading":
    # The config's own libraries, which a script that loads nothing with us does without.
    from dist_train.config.schema import LoaderConfig
    from dist_train.data.loader import Loading
    from dist_train.data.source import Source

    source = Source.of_own_loop(dataset, seed, training, world().group.device)
    return Loading(source, requests, LoaderConfig(workers=workers), min(workers, batches))


def _size(dataset: Any, what: str) -> int:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UserError(f"{what}: {type(dataset).__name__} has no len(), or no samples by index")
    return len(dataset)


def _check_counts(what: str, **given: tuple[Any, int]) -> None:
    """Raises UserError naming the first that is no whole number, or below its least."""
    for name, (value, least) in given.items():
        if not isinstance(value, int) or value < least:
            raise UserError(f"{what}: {name}={value!r}: it is a whole number, at least {least}")
