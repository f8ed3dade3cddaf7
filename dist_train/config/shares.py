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


def microbatch_choices(config: "RunConfig", world_size: int) -> list[int]:
    """The numbers of microbatches that `fit` chooses from, ascending: those that give every rank as many, where the
    size of the global batch allows that. Empty where there are more ranks than samples."""
    size = config.batch.global_size
    found = [parts for parts in range(world_size, size + 1) if size % parts == 0]
    even = [parts for parts in found if parts % world_size == 0]
    return even if even or config.model.sync_batchnorm else found


def at_least(config: "RunConfig", world_size: int) -> int:
    """The number of microbatches that the config gives, else the smallest that it may become when the run begins."""
    given = config.batch.microbatches
    if given == "fit":
        return next(iter(microbatch_choices(config, world_size)), world_size)
    return world_size if given == "auto" else given


def settled(config: "RunConfig", microbatches: int) -> "RunConfig":
    """With that number of microbatches, which is one of its choices."""
    return config.model_copy(update={"batch": config.batch.model_copy(update={"microbatches": microbatches})})


def smaller(config: "RunConfig", world_size: int) -> str:
    """What a run that has no memory for its microbatches can do to have smaller ones, in words."""
    now, size = at_least(config, world_size), config.batch.global_size
    more = next((parts for parts in microbatch_choices(config, world_size) if parts > now), None)
    if more is None:
        return "The microbatches are of one sample each: a smaller model or smaller samples"
    return f"A new run with batch.microbatches={more} ({size // more} samples each, not {size // now})"


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
