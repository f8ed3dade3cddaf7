"""Which run this is: its directory, its config with everything settled, and the checkpoint to go on from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_train.checkpoint.resume import check_config_unchanged, recorded_config
from dist_train.checkpoint.store import CheckpointStore, VerifiedCheckpoint, locate
from dist_train.config.changes import is_the_same_training
from dist_train.config.recorded import of_file
from dist_train.config.schema import RunConfig
from dist_train.config.shares import at_least, check_fits
from dist_train.errors import UserError
from dist_train.optim.schedule import Schedule
from dist_train.rundir.files import remove_tree
from dist_train.rundir.layout import RunDir
from dist_train.rundir.lease import Fence, Lease
from dist_train.rundir.runs import new_run_dir, to_go_on_with


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """What rank 0 has found out about the run, for all ranks.

    Attributes:
        config: with everything that was `auto` and depends on the world size filled in.
        fence: checks that the run directory is still this session's.
        generation: the number of this start of the process group, as the launcher counts them; 0 without it.
        checkpoint: the one to resume from.
        allowed: what may differ from that checkpoint's.
        notes: lines for the user.
    """

    config: RunConfig
    run_dir: Path
    fence: Fence
    generation: int
    checkpoint: VerifiedCheckpoint | None
    allowed: tuple[str, ...]
    notes: tuple[str, ...]


def resolve_run(
    config: RunConfig, world_size: int, run_dir: Path | None, resume: str | None, allowed: Sequence[str], lease: Lease
) -> ResolvedRun:
    """Finds the run directory, takes it, finds the checkpoint, and checks that they fit the config.

    Args:
        config: as given.
        world_size: number of ranks of this session.
        run_dir: where the run lives; a new directory without it.
        resume: `none` to begin anew, a checkpoint to begin from; `auto` for the run directory's newest, or without one
            that of the newest run that has one.
        allowed: keys that may differ from the config that the run began with.
        lease: not yet taken.

    Raises:
        UserError: when the directory belongs to a live run, or the checkpoints are damaged, or do not fit.
    """
    newest = to_go_on_with(config) if run_dir is None and resume == "auto" else None
    run_dir = (run_dir or (newest.run_dir if newest else new_run_dir(config))).expanduser().resolve()
    fence = lease.take(run_dir)
    CheckpointStore(RunDir(run_dir).checkpoints).remove_unfinished()
    for path in run_dir.glob(".tmp-*"):  # that earlier sessions began to write and did not finish
        remove_tree(path)
    checkpoint = _find(run_dir, resume)
    before = recorded_config(checkpoint) if checkpoint else None
    notes = [f"{line}, going on from {checkpoint.path.name}" for line in checkpoint.skipped] if checkpoint else []
    if newest is not None:
        notes.insert(0, f"--resume auto: going on with {newest.run_dir} from {newest.checkpoint}")
    config = _settle_microbatches(config, before or _begun(run_dir, config, world_size), world_size)
    config = _settle_layout(config, before)
    if before is not None:
        notes += check_config_unchanged(before, config, allowed)
    return ResolvedRun(
        config=config,
        run_dir=run_dir,
        fence=fence,
        generation=last.number if (last := RunDir(run_dir).newest_generation()) else 0,
        checkpoint=checkpoint,
        allowed=tuple(allowed),
        notes=tuple(notes),
    )


def _find(run_dir: Path, resume: str | None) -> VerifiedCheckpoint | None:
    """The checkpoint to go on from."""
    store = CheckpointStore(RunDir(run_dir).checkpoints)
    if resume == "none":
        if store.all():
            raise UserError(
                f"{run_dir} holds checkpoints, and --resume none would begin anew on top of them: give another "
                "--run-dir, or leave --resume none out"
            )
        return None
    found = store.newest()
    if found is None and resume not in (None, "auto"):
        found = locate(Path(str(resume)).expanduser(), lambda line: None)
    return found


def changed_schedule(checkpoint: VerifiedCheckpoint, config: RunConfig, steps_per_epoch: int) -> list[str]:
    """A line where the learning rate after the checkpoint is not what it would have been: the training was made longer
    or shorter, and its schedule with it, or the schedule was changed."""
    before = recorded_config(checkpoint)
    if before is None:
        return []
    step = int(checkpoint.manifest["step"])
    old, new = (Schedule.of(one, steps_per_epoch) for one in (before, config))
    if old == new or math.isclose(old.lr(step), new.lr(step), rel_tol=1e-9):
        return []
    length = f"{new.total_steps:,} steps" + (f", not {old.total_steps:,}" if new.total_steps != old.total_steps else "")
    return [
        f"schedule: {config.schedule.name} over {length}: after step {step:,} the learning rate is {new.lr(step):.3g}, "
        f"and would have been {old.lr(step):.3g}"
    ]


def _settle_layout(config: RunConfig, before: RunConfig | None) -> RunConfig:
    """A run keeps the memory layout that it began with, also one from before there was an `auto`."""
    kept = (before or config).model.is_channels_last
    if config.model.channels_last != "auto":
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"channels_last": kept})})


def _begun(run_dir: Path, config: RunConfig, world_size: int) -> RunConfig | None:
    """What an earlier start of the same run, which has saved nothing yet, has found to fit."""
    if config.batch.microbatches != "fit" or not RunDir(run_dir).config.is_file():
        return None
    try:
        begun = of_file(RunDir(run_dir).config).alone
    except UserError:
        return None
    return begun if is_the_same_training(begun, config, ()) and at_least(begun, world_size) >= world_size else None


def _settle_microbatches(config: RunConfig, before: RunConfig | None, world_size: int) -> RunConfig:
    """`auto` is the world size of the run's first session, and stays that. `fit` stays what it has been found to be;
    in a new run it is still to be found."""
    given, known = config.batch.microbatches, before.batch.microbatches if before else None
    if given not in ("auto", "fit"):
        return config
    if given == "fit" and not isinstance(known, int):
        check_fits(config, world_size, at_least(config, world_size))
        return config
    content, parts = config.model_dump(mode="json"), known or world_size
    content["batch"]["microbatches"] = parts
    try:
        return RunConfig.model_validate(content)
    except ValueError:
        raise UserError(
            f"batch.global_size {config.batch.global_size} does not divide among {parts} ranks, one microbatch each: "
            "make it a multiple, or set batch.microbatches"
        ) from None
