"""Which run directory a command means, and what the run begins from."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.errors import UserError
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import RunState, read_launches
from dist_train.rundir.runs import CHECKPOINTS, Saved, has_checkpoints, is_checkpoint, new_run_dir, saved, to_go_on_with

from ..job import Place

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where a run lives and what it begins from."""

    folder: Path
    resume: str
    """What the ranks are told: `auto`, `none`, or a checkpoint's directory."""
    note: str | None = None
    """What the user may not expect, in a line."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What the command line says about the run."""

    run_dir: str | None
    resume: str | None
    """`auto`, `none`, a run directory or a checkpoint."""
    job: str | None
    """A name that all nodes of this start know: SLURM's job, or --rdzv-id."""
    nodes: int
    place: Place | None = None
    """In SLURM's job; None where `job` is not one."""
    allowed: tuple[str, ...] = ()
    """Keys that may have changed."""


def config_of(resume: str | None, run_dir: str | None) -> Path | None:
    """The resolved config that a run left, for a command line that names a run and no config."""
    for given in (resume, run_dir):
        if given is None or given in ("auto", "none"):
            continue
        folder = Path(given)
        for place in (folder, folder.parent.parent) if is_checkpoint(folder) else (folder,):
            if (config := RunDir(place).config).is_file():
                return config
    return None


def choose_run(config: "RunConfig", request: RunRequest) -> Choice:
    """The run directory that the command means. Looks, and creates nothing.

    Raises:
        UserError: when the request cannot be met, with what to do about it.
    """
    source = _existing(request.resume)
    job = request.job or None
    if job is not None and _FOLDER_NAME.fullmatch(job) is None:
        raise UserError(f"--rdzv-id {job!r} names the run directory: letters, digits and ._- only, at most 100")
    if request.run_dir is not None:
        return _in_named(Path(request.run_dir), request.resume, source)
    if source is not None and not is_checkpoint(source):
        return Choice(folder=source.resolve(), resume="auto")
    if job is not None:
        return _in_job(config, request, job, source)
    if request.nodes > 1:
        raise UserError(
            f"{request.nodes} nodes have to agree on one run directory, and each would make its own: "
            "give them all the same --run-dir DIR (or the same --rdzv-id)"
        )
    if source is not None:
        return Choice(folder=new_run_dir(config), resume=str(source))
    newest = to_go_on_with(config) if request.resume == "auto" else None
    return _auto(newest) if newest else Choice(folder=new_run_dir(config), resume="none")


def _in_job(config: "RunConfig", request: RunRequest, job: str, source: Path | None) -> Choice:
    """The job's own run, to which a requeued job comes back. With --resume auto it is the run in which the job has gone
    on with this training before; else the job's own run; and where that has saved nothing, the newest run."""
    first = own = Path(config.run_root) / config.name / job
    place, ours, others = request.place, list[Path](), False
    if place is not None:
        if request.resume == "auto":
            runs = first.parent.glob("*")
            ours = [run for run in runs if any(launch.began.job == place.job for launch in read_launches(run))]
            same = _newest([run for run in ours if _is_of(run, config, request.allowed)])
            if same is not None:
                return _auto(same)
        own = _folder_of(first, config, request.allowed, place.job, place.restarts)
        others = any(_was_visited(run, place.job, place.restarts) for run in ours)  # another config's, in this start
    if request.resume == "auto" and own == first and not others and not has_checkpoints(own):
        newest = _newest(ours) or to_go_on_with(config)
        if newest is not None:
            return _auto(newest)
    choice = _in_named(own, request.resume, source)
    note = f"{first.name} is a training of another config in this job; this one is in {own.name}"
    return replace(choice, note=choice.note or note) if own != first else choice


def _newest(runs: list[Path]) -> Saved | None:
    known = [found for run in runs if (found := saved(run)) is not None]
    return max(known, key=lambda run: run.at, default=None)


def _auto(newest: Saved) -> Choice:
    note = f"--resume auto: going on with {newest.run_dir} from {newest.checkpoint}"
    return Choice(folder=newest.run_dir, resume="auto", note=note)


def _in_named(folder: Path, resume: str | None, source: Path | None) -> Choice:
    """A directory that was named, or that the job's id names, so that a requeued job comes back to it."""
    held = has_checkpoints(folder)
    folder = folder.resolve() if folder.is_dir() else folder
    if resume == "none" and held:
        raise UserError(
            f"{folder} holds checkpoints, and --resume none would begin anew on top of them: give another --run-dir, "
            "or leave --resume none out to go on from them"
        )
    if source is None or source.resolve() == folder.resolve():
        return Choice(folder=folder, resume="auto" if held else "none")
    if not is_checkpoint(source):
        raise UserError(f"--run-dir {folder} and --resume {source} are two runs: give one of them, or a checkpoint")
    if held:
        note = f"{folder} holds checkpoints of its own: going on from its newest, not from {source}"
        return Choice(folder=folder, resume="auto", note=note)
    return Choice(folder=folder, resume=str(source.resolve()))


def _existing(resume: str | None) -> Path | None:
    """The run or checkpoint that --resume names."""
    if resume in (None, "auto", "none"):
        return None
    folder = Path(str(resume))
    if not folder.is_dir():
        raise UserError(f"--resume {resume}: no such directory; it takes auto, none, a run directory or a checkpoint")
    if not (is_checkpoint(folder) or RunDir(folder).is_run()):
        raise UserError(
            f"--resume {resume}: neither a run directory (config.yaml, {CHECKPOINTS}/) nor a checkpoint (manifest.json)"
        )
    return folder.resolve()


# ---------------------------------------------------------------- the trainings of a job


# A script may train several configs, one after the other. The first is `slurm-JOBID`, the second `slurm-JOBID-2`. A
# requeued job finds each again by its config.


def _folder_of(first: Path, config: "RunConfig", allowed: Sequence[str], job: str, restarts: int) -> Path:
    """The folder of the job's training with this config, or else the next free one. Creates nothing.

    A training that is not done, and that this start of the job has not visited, may be this one with a config that was
    edited while the job waited. Its folder is returned, so that the change is refused and nothing starts anew silently.
    A folder without a config is free, unless a training of this start has failed there.

    Args:
        first: the folder of the job's first training.
        allowed: keys that may have changed.
        restarts: how often the job has been requeued.
    """
    places = (first if number == 1 else first.with_name(f"{first.name}-{number}") for number in itertools.count(1))
    there: list[Path] = []
    for place in places:
        if not place.exists():
            break
        if _is_of(place, config, allowed):
            return place
        there.append(place)
    left = [place for place in there if not _was_visited(place, job, restarts)]
    free = [place for place in left if not RunDir(place).config.is_file()]
    waiting = [place for place in left if not RunState.of(place).reached_its_end]
    return [*free, *waiting, place][0]


def _is_of(place: Path, config: "RunConfig", allowed: Sequence[str]) -> bool:
    """Whether the folder holds the training of this config, as far as it can be read."""
    from dist_train.config.changes import is_the_same_training
    from dist_train.config.source import load

    path = RunDir(place).config
    try:
        return path.is_file() and is_the_same_training(load(path), config, allowed)
    except UserError:  # written by another version
        return False


def _was_visited(place: Path, job: str, restarts: int) -> bool:
    """Whether a launcher of this start of the job has ended there."""
    ended = [launch.began for launch in read_launches(place) if launch.ended and launch.ended.event == "ended"]
    return any((began.job, began.restarts) == (job, restarts) for began in ended)
