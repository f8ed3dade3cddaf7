"""The run directory of each training of a job: a script may train several configs, one after the other.

The first is `slurm-JOBID`, the second `slurm-JOBID-2`. A requeued job finds each again by its config.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import RunState, read_launches

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig


def folder_of(first: Path, config: "RunConfig", allowed: Sequence[str], job: str, restarts: int) -> Path:
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
        if is_of(place, config, allowed):
            return place
        there.append(place)
    left = [place for place in there if not was_visited(place, job, restarts)]
    free = [place for place in left if not RunDir(place).config.is_file()]
    waiting = [place for place in left if not _is_done(place)]
    return [*free, *waiting, place][0]


def is_of(place: Path, config: "RunConfig", allowed: Sequence[str]) -> bool:
    """Whether the folder holds the training of this config, as far as it can be read."""
    from dist_train.config.changes import is_the_same_training
    from dist_train.config.problems import ConfigError
    from dist_train.config.source import load

    path = RunDir(place).config
    try:
        return path.is_file() and is_the_same_training(load(path), config, allowed)
    except ConfigError:  # written by another version
        return False


def _is_done(place: Path) -> bool:
    """Whether it reached its end, or the step of train.stop_after."""
    state = RunState.of(place)
    return state.status == "done" or (state.status == "stopped" and state.signal is None)


def was_visited(place: Path, job: str, restarts: int) -> bool:
    """Whether a launcher of this start of the job has ended there."""
    ended = [launch.began for launch in read_launches(place) if launch.ended and launch.ended.event == "ended"]
    return any((began.job, began.restarts) == (job, restarts) for began in ended)
