"""The config that a run directory or a checkpoint carries, which may have come from anybody. No torch here.

It is whole: it extends no other file. What is wrong with it is told in one line, since nobody here has written it.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.config import trust
from dist_train.config.problems import ConfigError, printable
from dist_train.config.schema import RunConfig
from dist_train.config.source import load, load_plain
from dist_train.errors import ExitCode, UserError
from dist_train.rundir.reading import read_json

CONFIG, MANIFEST = "config.yaml", "manifest.json"
_TRACES: tuple[str, ...] = ("state.json", "metrics.jsonl", "generations", "lives.jsonl", "slurm/job.json", ".lease")
_TRACES += (MANIFEST, "environment.json", "checkpoints/*", "logs/rank*", ".lock-node*")
"""What a folder has in which a run lives, or a checkpoint, beside its config."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A config and where it stands."""

    source: str
    """The run or checkpoint, as it was named."""
    alone: RunConfig
    """As it came."""
    config: RunConfig
    """With the user's overrides on top."""

    def trusted(self, given: bool, note: trust.Note, *, job: bool = False) -> RunConfig:
        """The config, once nothing in it runs code that the user does not know.

        Raises:
            UserError: (exit 2) when something would.
        """
        asked = trust.of_recorded(self.alone, self.config, job=job)
        trust.require(asked, f"the config of {self.source}", given=given, note=note)
        return self.config


def read_recorded(target: Path, overrides: Sequence[str] = ()) -> Recorded | None:
    """What a run directory or a checkpoint carries; None where it carries none. Imports nothing.

    Raises:
        UserError: when it cannot be read, or the overrides do not fit.
    """
    if (target / CONFIG).exists():
        return of_file(target / CONFIG, overrides)
    if not (target / MANIFEST).is_file():
        return None
    content = _manifest(target).get("config")
    if content is None:
        above = target.resolve().parents
        return read_recorded(above[1], overrides) if len(above) > 1 and (above[1] / CONFIG).is_file() else None
    where = str(target / MANIFEST)
    alone = _told(where, (), lambda: load_plain(content, where))
    return Recorded(
        source=str(target),
        alone=alone,
        config=_told(where, overrides, lambda: load_plain(content, where, overrides)) if overrides else alone,
    )


def of_file(path: Path, overrides: Sequence[str] = ()) -> Recorded:
    """What a run's config.yaml says.

    Raises:
        UserError: as `read_recorded` does.
    """
    alone = _told(str(path), (), lambda: load(path, recorded=True))
    whole = _told(str(path), overrides, lambda: load(path, overrides, recorded=True)) if overrides else alone
    return Recorded(source=str(path), alone=alone, config=whole)


def is_recorded(path: Path) -> bool:
    """Whether a config file is a run's own: it lies where a run does, so that nobody here need have written it."""
    return path.name == CONFIG and has_traces(path.parent.parent if path.parent.name == "slurm" else path.parent)


def has_traces(folder: Path) -> bool:
    """Whether a run has been in a folder, or somebody made it look so; links that lead nowhere count."""
    return any(_is_there(folder, name) for name in _TRACES)


def _is_there(folder: Path, name: str) -> bool:
    return any(folder.glob(name)) if "*" in name else os.path.lexists(folder / name)


def given(
    path: Path, overrides: Sequence[str], *, trusts: bool, note: trust.Note, of_run: bool = False, job: bool = False
) -> RunConfig:
    """The config of a file that a command line names: the user's own, or a run's, which has to be trusted.

    Args:
        trusts: --trust.
        of_run: it was found in the folder that was named as a run, whatever else is there.
        job: a job's script would execute what it names.

    Raises:
        ConfigError: with all that is wrong with the user's own.
        UserError: when a run's cannot be read, or is not trusted.
    """
    if not (of_run or is_recorded(path)):
        return load(path, overrides)
    return of_file(path, overrides).trusted(trusts, note, job=job)


def _manifest(checkpoint: Path) -> dict[str, Any]:
    try:
        found = read_json(checkpoint / MANIFEST)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or re.sub(r"\s+", " ", str(error))
        message = f"{checkpoint / MANIFEST} cannot be read: {printable(reason, 200)}"
        raise UserError(message, ExitCode.CANNOT_RESUME) from None


def _told(where: str, overrides: Sequence[str], loading: Any) -> RunConfig:
    try:
        return loading()
    except ConfigError as error:
        first, more = error.problems[0], len(error.problems) - 1
        key = f"{printable(first.key, 100)}: " if first.key else ""
        others = f" (and {more} more)" if more else ""
        place = first.where if first.where.startswith(where) or overrides else where
        raise UserError(f"{printable(place, 300)}: {key}{printable(first.message, 500)}{others}") from None
