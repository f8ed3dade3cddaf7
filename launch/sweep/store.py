"""A sweep's folder: sweep.json with its points, their configs, and one run directory for each.

```
runs/digits/sweep-20261128-123001-k3f9/
  sweep.json            the points, and what ranks them
  points/000-lr0.1.yaml the whole config of each
  000-lr0.1/            its run directory
  logs/000-lr0.1.log    what its launcher said
  slurm/                the array's script and logs, where there was one
  table.csv, table.json
```
The folder appears complete, in one step, before anything runs.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from dist_train.config.dump import to_yaml
from dist_train.config.schema import RunConfig
from dist_train.errors import ExitCode, UserError
from dist_train.rundir.codec import read_json, read_record, write_json
from dist_train.rundir.layout import RunDir
from dist_train.rundir.process_id import ProcessId
from dist_train.rundir.runs import has_checkpoints, new_run_dir

from .points import Point

_FILE, _LOCK = "sweep.json", ".lock"


def _in_one_line(value: Path | str) -> Path | str:
    """The file may come from anybody, and its texts are shown in a terminal."""
    if not str(value).isprintable():
        raise ValueError("control characters")
    return value


Line = Annotated[str, AfterValidator(_in_one_line)]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of sweep.json, and its folder."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    folder: Path
    config: Line
    """The config file that the points were drawn from, for information; each point has its own config."""
    cwd: Annotated[Path, AfterValidator(_in_one_line)]
    """The folder where the command was given: relative paths in the configs start there."""
    metric: Line
    better: Literal["max", "min"]
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    def run_dir(self, point: Point) -> Path:
        return self.folder / point.name

    def log(self, point: Point) -> Path:
        return self.folder / "logs" / f"{point.name}.log"

    def config_of(self, point: Point) -> Path:
        """The run's own config, with its `auto` values settled, once it has a checkpoint; before that, the point's."""
        own = RunDir(self.run_dir(point)).config
        begun = own.is_file() and has_checkpoints(self.run_dir(point))
        return own if begun else self.folder / "points" / f"{point.name}.yaml"


_SWEEP = TypeAdapter(Sweep)


def lay_out(config: str, points: Sequence[Point], configs: Sequence[RunConfig]) -> Sweep:
    """A sweep in a new folder. Creates nothing."""
    first = configs[0]
    place = new_run_dir(first)
    return Sweep(
        folder=place.with_name(f"sweep-{place.name}").absolute(),
        config=config,
        cwd=Path.cwd(),
        metric=first.best,
        better=first.best_is,
        points=tuple(points),
    )


def grouped(config: RunConfig, sweep: Sweep) -> RunConfig:
    return config.model_copy(update={"tracking": config.tracking.grouped(sweep.name)})


def create(sweep: Sweep, configs: Mapping[str, RunConfig]) -> None:
    """Creates the folder with everything that describes the sweep.

    Raises:
        UserError: when the file system refuses.
    """
    hidden = sweep.folder.with_name(f".tmp-{sweep.name}")
    try:
        (hidden / "points").mkdir(parents=True)
        (hidden / "logs").mkdir()
        for name, config in configs.items():
            (hidden / "points" / f"{name}.yaml").write_text(to_yaml(config))
        write_json(hidden / _FILE, _SWEEP.dump_python(sweep, mode="json", exclude={"folder"}))
        os.rename(hidden, sweep.folder)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise UserError(f"cannot make the sweep's folder {sweep.folder}: {error.strerror}") from None


def read_sweep(folder: Path) -> Sweep:
    """The sweep in a folder.

    Raises:
        UserError: when there is none.
    """
    found = read_json(folder / _FILE)
    try:
        return _SWEEP.validate_python({**found, "folder": folder.resolve()} if isinstance(found, dict) else found)
    except ValidationError:
        raise UserError(f"{folder} is no sweep's folder: there is no readable {_FILE} in it") from None


@contextlib.contextmanager
def locked(sweep: Sweep, *, leads: bool = True) -> Iterator[None]:
    """Locks the sweep for one command; the kernel releases the lock however this process ends.

    Args:
        leads: the points are children of this process, which passes stop requests on to them.

    Raises:
        UserError: (exit 3) when another command holds it.
    """
    with open(sweep.folder / _LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{sweep.folder}: another `dist-train sweep` is at work on it; wait for its end, or stop it"
            raise UserError(message, ExitCode.OWNED) from None
        except OSError:  # the file system has no locks; each run directory has its own owner
            pass
        lock.truncate(0)
        if leads:
            lock.write(json.dumps(asdict(ProcessId.myself())))
            lock.flush()
        yield


def leader(folder: Path) -> ProcessId | None:
    """The process on this host that runs the points of the sweep in `folder`, if there is one."""
    process = read_record(ProcessId, folder / _LOCK)
    return process if process is not None and process.lives() else None
