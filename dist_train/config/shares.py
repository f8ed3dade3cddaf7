"""How a global batch is cut into microbatches, and which of them a rank processes; shared with the launcher."""

from typing import TYPE_CHECKING

from dist_train.errors import UserError

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig


def share(rank: int, world_size: int, microbatches: int) -> range:
    """The contiguous microbatch ids of `rank`, as evenly as possible; all ranks' together are 0..microbatches-1.

    Raises:
        UserError: when there are more ranks than microbatches, so that a rank would have nothing to do.
    """
    if world_size > microbatches:
        raise UserError(
            f"{world_size} ranks need at least as many microbatches, and batch.microbatches is {microbatches}: "
            f"start at most {microbatches} ranks, or set batch.microbatches to {world_size} or more"
        )
    return range(rank * microbatches // world_size, (rank + 1) * microbatches // world_size)


def check_even(world_size: int, microbatches: int) -> None:
    """Raises UserError when some ranks have more microbatches than others: SyncBatchNorm waits for all ranks
    in each forward, and would wait forever for a microbatch that a rank does not have."""
    if microbatches % world_size:
        raise UserError(
            f"SyncBatchNorm needs as many microbatches on every rank, and {microbatches} do not divide among "
            f"{world_size} ranks: start a number of ranks that divides {microbatches}, or set batch.microbatches to "
            f"{-(-microbatches // world_size) * world_size}"
        )


def check_fits(config: "RunConfig", world_size: int, microbatches: int) -> None:
    """Raises UserError when a global batch cannot be shared out among so many ranks."""
    share(0, world_size, microbatches)  # which says so when there are too few
    if config.model.sync_batchnorm:
        check_even(world_size, microbatches)
    size = config.batch.global_size
    if size % microbatches:
        raise UserError(
            f"batch.global_size {size} does not divide into {microbatches} microbatches, one for each rank; the "
            f"nearest above is {-(-size // microbatches) * microbatches}, or set batch.microbatches to a number"
        )
