"""Shared by the commands that read a saved model."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dist_train.config.problems import ConfigError
from dist_train.errors import UserError


@contextmanager
def reporting() -> Iterator[None]:
    """Ends the process with one line and an exit code on an error that the user can fix. Under the launcher, which does
    the same for all ranks together, errors pass through."""
    try:
        yield
    except (UserError, ConfigError) as error:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise
        print(error, file=sys.stderr)
        sys.exit(int(getattr(error, "code", 2)))
