"""A saved model and what belongs to it: where `predict`, `evaluate`, `export` and `dist_train.load` begin."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dist_train import models
from dist_train.checkpoint.manifest import DamagedCheckpoint
from dist_train.checkpoint.resume import content_of
from dist_train.checkpoint.state import Snapshot
from dist_train.checkpoint.store import VerifiedCheckpoint, locate
from dist_train.config import recorded, trust
from dist_train.config.problems import printable
from dist_train.config.schema import Custom, CustomData, RunConfig
from dist_train.data.batch import Microbatch
from dist_train.data.given import Given, read_given
from dist_train.data.loader import evaluation_batches
from dist_train.errors import ExitCode, ResumeError, UserError


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What belongs to a saved model.

    Attributes:
        path: of the checkpoint.
        step: optimizer steps that it was trained for.
        config: of the run.
        device: of the model.
        classes: their names, in the order of the model's scores; None where there are none.
        shape: of one input; None where that is not known.
        data: all that the checkpoint says of the data: `outputs`, `vocabulary`, `scaling` and `columns` of a table, ….
    """

    path: Path
    step: int
    config: RunConfig
    device: torch.device
    classes: tuple[str, ...] | None
    shape: tuple[int, ...] | None
    data: Mapping[str, Any]

    @property
    def offered(self) -> dict[str, Any]:
        """What the model is told of the data, as `Splits.offered`."""
        counts = {name: self.data.get(name) for name in ("outputs", "vocabulary")}
        return {"shape": self.shape, "classes": self.classes and len(self.classes), **counts}

    def inputs(self, *files: str | os.PathLike[str]) -> Any:
        """The inputs of files as the model takes them, of all in one batch, prepared as for an evaluation: pictures or
        folders of them, or tables.

        Raises:
            UserError: when one cannot be read, or is of another kind.
        """
        given = self.given([os.fspath(file) for file in files])
        changes = {
            "eval": self.config.eval.model_copy(update={"batch_size": len(given.names)}),
            "loader": self.config.loader.model_copy(update={"workers": 0}),
        }
        at_once = replace(self, config=self.config.model_copy(update=changes))
        [(_, batch)] = at_once.batches(given, [0])
        return batch.inputs

    def given(self, words: Sequence[str], stdin: str = "", *, whole: bool = False) -> Given:
        """What was given to predict from; the arguments are those of `read_given`."""
        return read_given(words, stdin, self.config.data, self.data, whole=whole)

    def batches(self, given: Given, numbers: Sequence[int], ranks: int = 1) -> Iterator[tuple[int, Microbatch]]:
        """The inputs in batches of eval.batch_size, of which those of `numbers`; `ranks` share this machine."""
        config = self.config
        if isinstance(config.data, CustomData):  # what is given has one size
            config = config.model_copy(update={"data": config.data.model_copy(update={"pad": None})})
        return evaluation_batches(config, given.dataset, numbers, self.device, ranks)


def load(target: str | os.PathLike[str], *, best: bool = True, device: str = "cpu", trust: bool = False) -> nn.Module:
    """The model of a run or a checkpoint, in evaluation mode, with the weights that are evaluated: the averaged ones
    where there are some. Its attribute `trained`, a `Trained`, has the names of the classes and prepares inputs.

    Args:
        target: a run directory or a checkpoint.
        best: of a run directory take the best checkpoint, where one was the best, and not the newest.
        device: where the model is put.
        trust: allow what the run's own config imports, from now on, as --trust does.

    Raises:
        UserError: when there is none, it is damaged, or it would run code that is not trusted.
    """
    path = Path(target)
    config = config_of_run(path, trusts=trust)
    found = locate(path, lambda line: print(line, file=sys.stderr), best=best)
    model, trained = assembled(config, found, content(found), torch.device(device))
    model.trained = trained  # type: ignore[assignment]  # no tensor and no module
    return model.eval()


def content(found: VerifiedCheckpoint) -> Snapshot:
    """What a checkpoint holds. Raises UserError (exit 4), also where it goes away meanwhile."""
    try:
        return content_of(found)
    except (OSError, DamagedCheckpoint) as error:
        message = f"{found.path} went away while it was read ({error}): try again"
        raise ResumeError(message) from None


def assembled(
    config: RunConfig, found: VerifiedCheckpoint, saved: Snapshot, device: torch.device
) -> tuple[nn.Module, Trained]:
    """The model of a checkpoint, built by what the checkpoint says of the data, which is not looked at.

    Raises:
        UserError: (exit 4) when its weights do not fit.
    """
    data = saved.other["data"]
    classes, shape = ((None if data.get(name) is None else tuple(data[name])) for name in ("classes", "shape"))
    trained = Trained(
        path=found.path, step=saved.state.step, config=config, device=device, classes=classes, shape=shape, data=data
    )
    return saved_model(config, saved, **trained.offered).to(device), trained


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
        raise ResumeError(f"the saved weights do not fit the model {config.model.name}: {reason}") from None
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
            raise ResumeError("the config has a far larger model than the saved weights are of")

    counting = register_module_parameter_registration_hook(of_parameter)
    try:
        with torch.device("meta"):
            build()
    except UserError as error:
        if error.code == ExitCode.CANNOT_RESUME:
            raise  # any other error: some models need memory to be built; the real one will tell
    finally:
        counting.remove()
