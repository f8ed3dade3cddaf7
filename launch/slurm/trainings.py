"""Which folder is a training's, of those that one job has: a script may train several configs, one after the other.

The first is `slurm-JOBID`, then `slurm-JOBID-2`. A job that comes back finds each by its config.
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
    """The folder of the job's training with this config, or the next that is free. Makes nothing.

    One that is not done, and that this start of the job has not come to yet, may be this very training, whose config
    was edited while the job waited: it is taken for it, so that the change is refused and nothing begins anew unseen.
    One that has no config yet is free, unless a training of this start has failed there: its job may come back to it.

    Args:
        first: the folder of the job's first training.
        allowed: keys that may have changed.
        restarts: how often the job has come back.
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
    """Whether it has the config's training, as far as can be read."""
    from dist_train.config.changes import is_the_same_training
    from dist_train.config.problems import ConfigError
    from dist_train.config.source import load

    path = RunDir(place).config
    try:
        return path.is_file() and is_the_same_training(load(path), config, allowed)
    except ConfigError:  # of another version
        return False


def _is_done(place: Path) -> bool:
    """As far as it was to come, by its end or by train.stop_after."""
    state = RunState.of(place)
    return state.status == "done" or (state.status == "stopped" and state.signal is None)


def was_visited(place: Path, job: str, restarts: int) -> bool:
    """Whether a launcher of this start of the job has come to an end there."""
    ended = [launch.began for launch in read_launches(place) if launch.ended and launch.ended.event == "ended"]
    return any((began.job, began.restarts) == (job, restarts) for began in ended)
