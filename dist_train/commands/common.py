"""Shared by the commands that read a saved model."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dist_train import models
from dist_train.checkpoint.state import Snapshot
from dist_train.config import recorded, trust
from dist_train.config.problems import ConfigError, printable
from dist_train.config.schema import Custom, RunConfig
from dist_train.errors import ExitCode, UserError


def config_of_run(target: Path, overrides: Sequence[str] = (), *, trusts: bool) -> RunConfig:
    """The config that `target`, a run directory or a checkpoint, carries.

    Args:
        trusts: --trust.

    Raises:
        UserError: when there is none, or it would import code that the user has not trusted.
    """
    config = recorded.read_recorded(target, overrides).trusted(trusts, lambda line: print(line, file=sys.stderr))
    if sys.flags.safe_path and trust.powers(config):
        sys.path.insert(0, os.getcwd())  # where `python -m` looks for the user's own modules
    return config


def saved_model(config: RunConfig, snapshot: Snapshot, **offered: Any) -> nn.Module:
    """The model with its saved weights, on the CPU. Its start weights are not read: their file may be gone.

    Args:
        offered: what it is told of the data, as `Splits.offered`.

    Raises:
        UserError: (exit 4) when they do not fit each other.
    """
    build = partial(models.build, config.model, seed=config.seed, starts=False, **offered)
    if not isinstance(config.model, Custom):
        _check_size(build, snapshot)
    model = build()
    try:
        snapshot.load_evaluated(model)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = printable(" ".join(str(error).split()), 300)
        raise UserError(
            f"the saved weights do not fit the model {config.model.name}: {reason}", ExitCode.CANNOT_RESUME
        ) from None
    return model


def _check_size(build: Callable[[], nn.Module], snapshot: Snapshot) -> None:
    """Raises UserError for a model that is far larger than its saved weights, before it takes any memory: the config
    may come from anybody."""
    saved = snapshot.ema or snapshot.model
    most, count = 2 * sum(t.numel() for t in saved.values()) + 10**6, 10 * len(saved) + 1_000

    def of_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal most, count
        most, count = most - (0 if parameter is None else parameter.numel()), count - 1
        if most < 0 or count < 0:
            raise UserError("the config has a far larger model than the saved weights are of", ExitCode.CANNOT_RESUME)

    counting = register_module_parameter_registration_hook(of_parameter)
    try:
        with torch.device("meta"):
            build()
    except UserError as error:
        if error.code == ExitCode.CANNOT_RESUME:
            raise  # any other error: some models need memory to be built; the real one will tell
    finally:
        counting.remove()


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
