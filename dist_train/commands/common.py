"""What the commands that read a saved model share."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_train.checkpoint.store import is_checkpoint
from dist_train.config.errors import UserError
from dist_train.config.problems import ConfigError
from dist_train.config.schema import RunConfig
from dist_train.run_directory import recorded_config


def run_of(target: Path) -> RunConfig:
    """The config of the run that `target`, a run directory or a checkpoint in one, belongs to.

    Raises:
        UserError: when there is none.
    """
    run_dir = target.resolve().parents[1] if is_checkpoint(target) else target
    config = recorded_config(run_dir)
    if config is None:
        raise UserError(f"{target}: neither a run directory nor a checkpoint of one (no config.yaml)")
    return config


@contextmanager
def reporting() -> Iterator[None]:
    """Ends the process with one line and its exit code where the user can mend what went wrong. Under the launcher,
    which does the same for all ranks together, errors go through."""
    try:
        yield
    except (UserError, ConfigError) as error:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise
        print(error, file=sys.stderr)
        sys.exit(int(getattr(error, "code", 2)))
