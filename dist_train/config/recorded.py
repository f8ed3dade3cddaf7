"""The config that a run directory or a checkpoint carries, which may have come from anybody. No torch here.

It is complete: it extends no other file. Mistakes in it are reported in one line, since the user did not write it.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.config import trust
from dist_train.config.problems import ConfigError, printable
from dist_train.config.schema import RunConfig
from dist_train.config.source import load, load_plain
from dist_train.errors import ResumeError, UserError
from dist_train.rundir.layout import SCHEDULERS, RunDir
from dist_train.rundir.reading import read_json

CONFIG, MANIFEST = "config.yaml", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A config and where it comes from."""

    source: str
    """The run or checkpoint, as it was named."""
    alone: RunConfig
    """As recorded."""
    config: RunConfig
    """With the user's overrides on top."""

    def trusted(self, given: bool, note: trust.Note, *, job: bool = False) -> RunConfig:
        """The config, if it runs no code that the user has not trusted.

        Raises:
            UserError: (exit 2) when it would.
        """
        asked = trust.of_recorded(self.alone, self.config, job=job)
        trust.require(asked, f"the config of {self.source}", given=given, note=note)
        return self.config


def read_recorded(target: Path, overrides: Sequence[str] = ()) -> Recorded:
    """What a run directory or a checkpoint carries. Imports nothing.

    Raises:
        UserError: when it carries no config, the config cannot be read, or the overrides do not fit.
    """
    if (target / CONFIG).exists():
        return of_file(target / CONFIG, overrides)
    content = _manifest(target).get("config") if (target / MANIFEST).is_file() else None
    if content is not None:
        where = str(target / MANIFEST)
        return _recorded(str(target), where, overrides, lambda own: load_plain(content, where, own))
    run_dir = target.resolve().parent.parent
    if (target / MANIFEST).is_file() and (run_dir / CONFIG).is_file():
        return of_file(run_dir / CONFIG, overrides)
    raise UserError(
        f"{target}: neither a run directory nor a checkpoint of one (no config.yaml, no config in a manifest.json)"
    )


def of_file(path: Path, overrides: Sequence[str] = ()) -> Recorded:
    """What a run's config.yaml says.

    Raises:
        UserError: as `read_recorded` does.
    """
    return _recorded(str(path), str(path), overrides, lambda own: load(path, own, recorded=True))


def is_recorded(path: Path) -> bool:
    """Whether a config file belongs to a run, so that somebody else may have written it."""
    # A run itself may be called as a scheduler.
    return path.name == CONFIG and any(map(has_traces, path.parents[: 1 + (path.parent.name in SCHEDULERS)]))


def has_traces(folder: Path) -> bool:
    """Whether a folder has traces of a run or is a checkpoint, genuine or not; broken links count."""
    return RunDir(folder).has_traces() or os.path.lexists(folder / MANIFEST)


def load_given(
    path: Path, overrides: Sequence[str], *, trusts: bool, note: trust.Note, of_run: bool = False, job: bool = False
) -> RunConfig:
    """The config of a file that a command line names: the user's own, or a run's, which has to be trusted.

    Args:
        trusts: --trust.
        of_run: the file was found in a folder that was named as a run.
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
        raise ResumeError(message) from None


def _recorded(
    source: str, where: str, overrides: Sequence[str], loading: Callable[[Sequence[str]], RunConfig]
) -> Recorded:
    try:
        alone = loading(())
        return Recorded(source=source, alone=alone, config=loading(overrides) if overrides else alone)
    except ConfigError as error:
        first, *more = error.problems
        key = f"{printable(first.key, 100)}: " if first.key else ""
        others = f" (and {len(more)} more)" if more else ""
        place = first.where if first.where.startswith((where, "command line")) else where
        raise UserError(f"{printable(place, 300)}: {key}{printable(first.message, 500)}{others}") from None
