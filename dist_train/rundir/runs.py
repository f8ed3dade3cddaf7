"""What run directories are called, and which one to go on with; for the launcher, and for ranks started without it."""

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.errors import DiskError, telling_why
from dist_train.rundir.files import replacing
from dist_train.rundir.layout import REPLACED, RunDir
from dist_train.rundir.reading import read_json

if TYPE_CHECKING:  # pydantic takes a tenth of a second, and not every launch has a config
    from dist_train.config.schema import RunConfig

LATEST = "latest"
CHECKPOINTS = "checkpoints"
_CHECKPOINT = re.compile(r"step-\d{8,}")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A run, and the checkpoint that it would go on from."""

    run_dir: Path
    checkpoint: str
    at: float
    """When it was saved, in Unix time."""


def new_run_dir(config: "RunConfig") -> Path:
    """<run_root>/<name>/<UTC stamp>-<4 characters>. Makes nothing."""
    return new_folder(Path(config.run_root) / config.name)


def new_folder(parent: Path) -> Path:
    """A name below `parent` that is free: <UTC stamp>-<4 characters>. Makes nothing."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"  # without those that look alike
    return parent / f"{stamp}-{''.join(secrets.choice(alphabet) for _ in range(4))}"


def to_go_on_with(config: "RunConfig") -> Saved | None:
    """The newest run of this name that has something to go on from: `latest`, or where that has nothing, the one that
    saved last. None where there is nothing at all."""
    parent = Path(config.run_root) / config.name
    link = parent / LATEST
    if link.is_symlink() and (found := saved(parent / os.readlink(link))) is not None:
        return found
    runs = [found for path in _folders(parent) if not path.is_symlink() and (found := saved(path)) is not None]
    # A folder called latest is a copy of one of the others, made where links are not copied.
    return max(runs, key=lambda run: (run.at, run.run_dir.name != LATEST, run.run_dir.name), default=None)


def saved(run_dir: Path) -> Saved | None:
    """The newest checkpoint of a run whose files are all there, each as long as it was written. None without one.

    Whether each byte is what it was, rank 0 sees when it reads them.
    """
    for name in checkpoint_names(run_dir):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # damaged, in one way or another
            folder = RunDir(run_dir).checkpoints / name
            manifest = read_json(folder / "manifest.json")
            if all((folder / file).stat().st_size == facts["size"] for file, facts in manifest["files"].items()):
                return Saved(run_dir=run_dir, checkpoint=name, at=float(manifest["saved"]))
    return None


def checkpoint_names(run_dir: Path) -> list[str]:
    """Of every complete checkpoint, such as `step-00001200`, the newest first. Somebody's copy beside it,
    `step-00000100-copy`, is none."""
    names = (path.name for path in _folders(RunDir(run_dir).checkpoints) if _CHECKPOINT.fullmatch(path.name))
    return sorted(names, key=lambda name: (len(name), name), reverse=True)


def newest_checkpoint(run_dir: Path) -> str | None:
    return next(iter(checkpoint_names(run_dir)), None)


def has_checkpoints(run_dir: Path) -> bool:
    """Or one whose place another was about to take when its process died, and which the next session puts back."""
    return newest_checkpoint(run_dir) is not None or any(RunDir(run_dir).checkpoints.glob(f"{REPLACED}*"))


def _folders(parent: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in parent.iterdir() if path.is_dir()]
    return []


def point_latest_at(run_dir: Path) -> None:
    """Makes `latest` beside `run_dir` point to it; other readers see the old one or the new one. Some file systems have
    no links, and somebody's folder may be there: it is a convenience."""
    with suppress(OSError), replacing(run_dir.parent / LATEST) as temporary:
        temporary.symlink_to(run_dir.name)


def shown_path(path: Path) -> str:
    """`path` as a person types it: relative where it lies under the current folder."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):
        return str(path)
    return str(path) if relative.startswith("..") else relative


def is_checkpoint(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() or folder.resolve().parent.name == CHECKPOINTS


def is_elsewhere(recorded: str | None, run_dir: Path) -> bool:
    """Whether a record that names the run directory it was written in is about another one that is still there: then
    `run_dir` is a copy, and the processes in its records are not its own."""
    with suppress(OSError):
        return bool(recorded) and not Path(str(recorded)).samefile(run_dir)
    return False


def make_run_dir(folder: Path) -> None:
    """Creates the run directory with the part that the launcher keeps.

    Raises:
        UserError: when the file system does not let us.
    """
    with telling_why(f"cannot make the run directory {folder}", DiskError):
        RunDir(folder).generations.mkdir(parents=True, exist_ok=True)
