"""Which samples a rank computes, and in which order: a function of (seed, step) and its share, without state."""

from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from dist_train.config.shares import share
from dist_train.data.permutation import Permutation
from dist_train.errors import DataError
from dist_train.randomness import key

_BLOCK = 8192
"""Samples whose order is computed in one go: large enough for NumPy to be fast, small enough for the cache."""


class LoadRequest(NamedTuple):
    """Samples to load together: `parts` consecutive microbatches of one step, beginning with `number`."""

    step: int
    number: int
    parts: int
    epoch: int
    indices: np.ndarray
    """int64 [parts × m]"""


class ShardedSampler(DistributedSampler):
    """A DistributedSampler whose order is computed from (seed, epoch, position), in O(1) memory and with O(1) seek.

    Step t takes the positions [tB, (t+1)B) of its epoch's permutation, microbatch v of V the v-th slice of them, and a
    rank a contiguous share of the V (dist_train.config.shares). So what microbatch (t, v) holds does not depend on the
    number of ranks. The samples that no longer fill a global batch at the end of an epoch are left out of that epoch;
    the next one is shuffled anew.

    Iterating gives this rank's indices of the epoch last set by set_epoch.
    """

    def __init__(
        self, dataset: Sized, *, global_batch: int, microbatches: int, num_replicas: int, rank: int, seed: int = 0
    ) -> None:
        """`global_batch` must be a multiple of `microbatches`, and `microbatches` at least `num_replicas`.

        Raises:
            UserError: when the data set does not fill one global batch.
        """
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        if global_batch % microbatches:
            raise ValueError(f"a global batch of {global_batch} does not divide into {microbatches} microbatches")
        if len(dataset) < global_batch:
            raise DataError(
                f"the training set has {len(dataset):,} samples, and a global batch takes {global_batch:,}: "
                f"set batch.global_size to {len(dataset)} or less, or bring more data"
            )
        self.global_batch = global_batch
        self.share = share(rank, num_replicas, microbatches)
        self.microbatch_size = global_batch // microbatches
        self.steps_per_epoch = len(dataset) // global_batch
        self.num_samples = self.steps_per_epoch * len(self.share) * self.microbatch_size
        self.total_size = self.steps_per_epoch * global_batch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.steps_per_epoch
        for _, _, indices in self.steps(first, first + self.steps_per_epoch):
            yield from indices.ravel().tolist()

    def microbatches(self, first_step: int, last_step: int) -> Iterator[LoadRequest]:
        """This rank's microbatches of the steps in [first_step, last_step), through the ends of epochs.

        Each is a request of its own, so that several loading processes work for one step, and a microbatch is the same
        whichever loads it: a batch of a user's samples cannot always be cut.
        """
        for step, epoch, indices in self.steps(first_step, last_step):
            for number, part in zip(self.share, indices, strict=True):
                yield LoadRequest(step, number, 1, epoch, part)

    def shares(self, first_step: int, last_step: int) -> Iterator[LoadRequest]:
        """The same, all of a step in one request, which costs less for images in memory."""
        for step, epoch, indices in self.steps(first_step, last_step):
            yield LoadRequest(step, self.share.start, len(self.share), epoch, indices.ravel())

    def steps(self, first_step: int, last_step: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yields (step, epoch, indices), the indices int64 [microbatches of this rank, microbatch size].

        Computed in blocks that begin with one step and double, so that the first one is there at once.
        """
        step, block = first_step, 1
        largest = max(1, _BLOCK // (len(self.share) * self.microbatch_size))
        while step < last_step:
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            count = min(block, last_step - step, self.steps_per_epoch - step_of_epoch)
            for indices in self._indices(epoch, step_of_epoch, count):
                yield step, epoch, indices
                step += 1
            block = min(2 * block, largest)

    def _indices(self, epoch: int, step_of_epoch: int, count: int) -> np.ndarray:
        size = self.microbatch_size
        starts = np.arange(step_of_epoch, step_of_epoch + count) * self.global_batch
        places = np.arange(self.share.start * size, self.share.stop * size)
        order = Permutation(len(self.dataset), key(self.seed, "order", epoch))  # type: ignore[arg-type]
        return order(starts[:, None] + places).reshape(count, len(self.share), size)
