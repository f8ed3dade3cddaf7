"""Run directories: which one a command means, how a new one is called, and which there are."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_train.errors import UserError
from dist_train.rundir.layout import CHECKPOINTS, Saved, is_checkpoint_name, new_run_dir, saved, to_go_on_with
from dist_train.rundir.reading import numbered
from dist_train.rundir.records import is_process, read_all, read_object, read_rows, state_of
from launch.processes import is_alive, myself
from launch.slurm import jobs

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where a run lives and what it begins from."""

    folder: Path
    resume: str
    """For the worker: `auto`, `none`, or a checkpoint's directory."""
    note: str | None = None
    """What the user might not expect."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line said of it."""

    run_dir: str | None
    resume: str | None
    """`auto`, `none`, a run directory or a checkpoint."""
    job: str | None
    """A name that all nodes of this start know: SLURM's job, or --rdzv-id."""
    nodes: int
    restarts: int | None = None
    """How often SLURM's job has come back; None where `job` is not one."""
    allowed: tuple[str, ...] = ()
    """Keys that may have changed."""


def config_of(resume: str | None, run_dir: str | None) -> Path | None:
    """The resolved config that a run left, for a command line that names a run and no config."""
    for given in (resume, run_dir):
        if given is None or given in ("auto", "none"):
            continue
        folder = Path(given)
        for place in (folder, folder.parent.parent) if is_checkpoint(folder) else (folder,):
            if (place / "config.yaml").is_file():
                return place / "config.yaml"
    return None


def choose(config: "RunConfig", wish: Wish) -> Choice:
    """The run directory that is meant; looks, and creates nothing.

    Raises:
        UserError: when the wish cannot be met, with what to do about it.
    """
    source = _existing(wish.resume)
    job = _safe_name(wish.job) if wish.job else None
    if wish.run_dir is not None:
        return _in_named(Path(wish.run_dir), wish.resume, source)
    if source is not None and not is_checkpoint(source):
        return Choice(folder=source.resolve(), resume="auto")
    if job is not None:
        return _in_job(config, wish, job, source)
    if wish.nodes > 1:
        raise UserError(
            f"{wish.nodes} nodes have to agree on one run directory, and each would make its own: "
            "give them all the same --run-dir DIR (or the same --rdzv-id)"
        )
    if source is not None:
        return Choice(folder=new_run_dir(config), resume=str(source))
    newest = to_go_on_with(config) if wish.resume == "auto" else None
    return _auto(newest) if newest else Choice(folder=new_run_dir(config), resume="none")


def _in_job(config: "RunConfig", wish: Wish, job: str, source: Path | None) -> Choice:
    """The job's own run, to which it comes back. With --resume auto: where the job has gone on with this training
    before, else its own run, and where that has saved nothing, the newest."""
    from launch.slurm.trainings import folder_of, is_of, was_visited

    first = own = Path(config.run_root) / config.name / job
    name, ours = job.removeprefix("slurm-"), list[Path]()
    if wish.restarts is not None:
        if wish.resume == "auto":
            ours = [path.parent for path in first.parent.glob("*/lives.jsonl") if _was_in_job(path, name)]
            same = _newest([run for run in ours if is_of(run, config, wish.allowed)])
            if same is not None:
                return _auto(same)
        own = folder_of(first, config, wish.allowed, name, wish.restarts)
    others = any(was_visited(run, name, wish.restarts or 0) for run in ours)  # another config's, in this very start
    if wish.resume == "auto" and own == first and not others and not has_checkpoints(own):
        newest = _newest(ours) or to_go_on_with(config)
        if newest is not None:
            return _auto(newest)
    choice = _in_named(own, wish.resume, source)
    note = f"{first.name} is a training of another config in this job; this one is in {own.name}"
    return replace(choice, note=choice.note or note) if own != first else choice


def _newest(runs: list[Path]) -> Saved | None:
    known = [found for run in runs if (found := saved(run)) is not None]
    return max(known, key=lambda run: run.at, default=None)


def _was_in_job(lives: Path, job: str) -> bool:
    return any(str(row.get("job")) == job for row in read_rows(lives))


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
    if not (is_checkpoint(folder) or is_run(folder)):
        raise UserError(
            f"--resume {resume}: neither a run directory (config.yaml, {CHECKPOINTS}/) nor a checkpoint (manifest.json)"
        )
    return folder.resolve()


def is_checkpoint(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() or folder.resolve().parent.name == CHECKPOINTS


def is_run(folder: Path) -> bool:
    names = ("config.yaml", CHECKPOINTS, "state.json", "generations", "slurm/job.json")
    return any((folder / name).exists() for name in names)


def has_checkpoints(folder: Path) -> bool:
    return newest_checkpoint(folder) is not None


def newest_checkpoint(folder: Path) -> str | None:
    """Name of the newest complete checkpoint, such as `step-00001200`."""
    found = (folder / CHECKPOINTS).glob("step-*")
    names = (path.name for path in found if is_checkpoint_name(path.name) and path.is_dir())
    return max(names, key=lambda name: (len(name), name), default=None)


def _safe_name(job: str) -> str:
    if _FOLDER_NAME.fullmatch(job) is None:
        raise UserError(f"--rdzv-id {job!r} names the run directory: letters, digits and ._- only, at most 100")
    return job


def make(folder: Path) -> None:
    """Creates the run directory with the part that the launcher keeps.

    Raises:
        UserError: when the file system does not let us.
    """
    try:
        (folder / "generations").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run directory {folder}: {error.strerror}") from None


def free_space(folder: Path) -> int | None:
    """Bytes free where `folder` is or will be."""
    for place in (folder, *folder.absolute().parents):
        if place.is_dir():
            return shutil.disk_usage(place).free
    return None


def list_runs(root: Path) -> list[dict[str, Any]]:
    """What there is under a run root, the oldest first."""
    return [describe(folder, root) for folder in sorted(_runs_below(root, 3), key=_by_name)]


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """ROOT/RUN, ROOT/NAME/RUN, and the tasks of an array, ROOT/NAME/RUN/TASK; nothing inside of a run."""
    for path in folder.glob("*"):
        if path.is_dir() and not path.is_symlink():
            if is_run(path):
                yield path
            elif depth > 1:
                yield from _runs_below(path, depth - 1)


def _by_name(folder: Path) -> tuple[str, int]:
    """By the time in the name, the tasks of an array by their number."""
    name = folder.name
    return (folder.parent.name, int(name)) if name.isdecimal() else (name, -1)


def describe(folder: Path, root: Path) -> dict[str, Any]:
    """One run in a few words: name, state, step, total_steps, best, updated, path, jobs (ids in SLURM's queue)."""
    state = state_of(folder)
    ids = jobs.of_run(folder)
    status = state.get("status", "starting")
    generations = numbered(folder / "generations")
    if status in ("running", "starting") and generations and not _owner_lives(generations[-1]):
        verdicts = [read_object(path) for path in generations[-1].glob("verdict*.json")]
        status = "failed" if any(verdict.get("outcome", "failed") == "failed" for verdict in verdicts) else "died"
    if not state and not generations and ids:
        status = "submitted"
    return {
        "name": str(folder.relative_to(root)),
        "state": status,
        "step": state.get("step"),
        "total_steps": state.get("total_steps"),
        "best": state.get("best"),
        "metrics": state.get("metrics"),
        "updated": state.get("updated"),
        "path": str(folder),
        "jobs": ids,
    }


def _owner_lives(generation: Path) -> bool:
    """Whether a supervisor of the generation still runs, as far as can be seen from this host."""
    here = myself()["host"]
    return any(
        owner["host"] != here or is_alive(owner) for owner in read_all(generation / "nodes") if is_process(owner)
    )
