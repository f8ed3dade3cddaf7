"""The section `callbacks`: the user's own objects, which are called beside the training and cannot change it.

What they draw at random follows from the seed, their name and the step, and leaves every generator as it was. They see
the model in evaluation mode and without gradients; one that has changed it ends the training.
"""

import functools
import inspect
import re
import sysconfig
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dist_train
from dist_train.config.imports import construct, resolve_import
from dist_train.config.problems import did_you_mean, printable
from dist_train.config.schema import RunConfig
from dist_train.errors import ExitCode, UserCodeError, UserError
from dist_train.evaluate import evaluating
from dist_train.heartbeat import during
from dist_train.learner import Learner
from dist_train.parallel.ranks import Ranks
from dist_train.randomness import Generators, key, seeded
from dist_train.rundir.layout import RunDir
from dist_train.tracking.base import Own, Row
from dist_train.tracking.pictures import picture_of
from dist_train.tracking.tracker import NullTracker

_ALL = ("step", "figures", "log", "model", "rank")
GIVEN = {
    "on_start": _ALL,
    "on_step": _ALL,
    "on_evaluation": (*_ALL, "split"),
    "on_checkpoint": (*_ALL, "path"),
    "on_end": (*_ALL, "status"),
}
"""The methods that are called, and what each may take, by the names of its parameters."""
_NAME = re.compile(r"\w[\w -]*(\.\w[\w -]*)*(/\w[\w -]*(\.\w[\w -]*)*)*")
_ELSEWHERE = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(dist_train.__file__).parent)})
"""Folders whose code is not the user's."""


@dataclass(frozen=True, kw_only=True)
class Callback:
    """One that runs on this rank.

    Attributes:
        name: as the config has it.
        key: what it logs stands under: the last part of the name, with a number where there are several.
        methods: the parameters of each that it has.
    """

    name: str
    key: str
    thing: Any
    methods: Mapping[str, tuple[str, ...]]


def build_callbacks(config: RunConfig, ranks: Ranks) -> list[Callback]:
    """Those that run on this rank: on rank 0 all, elsewhere those with `every_rank = True` in their class.

    Raises:
        UserError: when one cannot be made, is no callback, or has a method that could not be called.
    """
    found, count = [], Counter[str]()
    for one in config.callbacks:
        last = one.name.rpartition(":")[2].rpartition(".")[2]
        count[last] += 1
        if ranks.is_first or getattr(resolve_import(one.name, "callback"), "every_rank", False):
            with_args = construct(one, "callback", offered={})
            unique = last if count[last] == 1 else f"{last}-{count[last]}"
            found.append(Callback(name=one.name, key=unique, thing=with_args, methods=_methods(one.name, with_args)))
    return found


def _methods(name: str, thing: Any) -> dict[str, tuple[str, ...]]:
    hooks = [attribute for attribute in dir(thing) if attribute.startswith("on_")]
    for hook in hooks:
        if hook not in GIVEN:
            known = ", ".join(GIVEN)
            raise UserError(f"callback {name} has {hook}, and called are {known}{did_you_mean(hook, GIVEN)}")
    if not hooks:
        raise UserError(f"callback {name} is a {type(thing).__name__}, with none of the methods {', '.join(GIVEN)}")
    return {hook: _taken(f"callback {name}.{hook}", getattr(thing, hook), GIVEN[hook]) for hook in hooks}


def _taken(name: str, method: Any, given: Sequence[str]) -> tuple[str, ...]:
    """The parameters that it gets."""
    if not callable(method) or inspect.iscoroutinefunction(method):
        kind = "a coroutine" if callable(method) else f"a {type(method).__name__}"
        raise UserError(f"{name} must be a plain method, and is {kind}")
    parameters = inspect.signature(method).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return tuple(given)
    by_name = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    needs = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    for parameter in needs:
        if parameter not in given or parameter not in by_name:
            hint = did_you_mean(parameter, given)
            raise UserError(f"{name} takes `{parameter}`; it may take {', '.join(given)}, by these names{hint}")
    return tuple(parameter for parameter in by_name if parameter in given)


class NullCallbacks:
    """Where there are none."""

    def call(self, method: str, step: int, figures: Mapping[str, Any], **more: Any) -> None:
        """Calls `method` of each callback that has it.

        Args:
            step: how many steps are done.
            figures: numbers by name.
            more: what this method may take besides.

        Raises:
            UserError: (exit 10) when one of them raises, or changes the model.
        """


class Callbacks(NullCallbacks):
    """Those of this rank."""

    def __init__(
        self,
        callbacks: Sequence[Callback],
        config: RunConfig,
        ranks: Ranks,
        learner: Learner,
        steps_per_epoch: int,
        tracker: NullTracker,
        run_dir: Path,
    ) -> None:
        self._callbacks, self._config, self._rank = callbacks, config, ranks.rank
        self._model, self._steps_per_epoch = learner.evaluated, steps_per_epoch
        self._tracker, self._run = tracker, RunDir(run_dir)
        self._generators = Generators(self._model, learner.task)

    def call(self, method: str, step: int, figures: Mapping[str, Any], **more: Any) -> None:
        for one in (one for one in self._callbacks if method in one.methods):
            name, seed = f"callback {one.name}.{method}, step {step}", key(self._config.seed, one.key + method)
            log = Log(one.key, self._position(step), functools.partial(self._run.picture, one.key, step))
            every = {"step": step, "figures": dict(figures), "model": self._model, "rank": self._rank, "log": log}
            given = {parameter: {**every, **more}[parameter] for parameter in one.methods[method]}
            with during("callback"), seeded(0), evaluating(self._model, seed, self._generators) as begin:
                begin(step)
                before = marks(self._model)
                try:
                    getattr(one.thing, method)(**given)
                except (Exception, SystemExit) as error:
                    raise _failure(name, error) from error
                _check(name, before, marks(self._model))
            if log.own.values or log.own.pictures:
                self._tracker.log_own(log.own)

    def _position(self, step: int) -> Row:
        samples = step * self._config.batch.global_size
        return {"step": step, "epoch": step / self._steps_per_epoch, "samples_seen": samples}


class Log:
    """`log(name, value)`: a number, a text, a picture or a figure for metrics.jsonl and every tracker."""

    def __init__(self, key: str, position: Row, file_of: Any) -> None:
        self.own, self._file_of = Own(key=key, position=position, values={}, pictures={}), file_of

    def __call__(self, name: str, value: Any) -> None:
        """
        Args:
            name: under which it stands, below the callback's own.
            value: a number, also as a tensor or array of one; a text; or what `picture_of` takes.

        Raises:
            ValueError: for another name.
            TypeError: for another value.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"log({name!r}, …): a name has letters, digits, and between them . - _ / or a blank")
        value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
        if isinstance(value, bool | int | float | str):
            self.own.values[name] = int(value) if isinstance(value, bool) else value
        elif (picture := picture_of(value)) is not None:
            self.own.pictures[name] = (self._file_of(name), picture)
        else:
            raise TypeError(
                f"log({name!r}, …) takes a number, a text, a picture (an array uint8 [height, width, 3], a tensor [3, "
                "height, width] of uint8 or floats from 0 to 1, a PIL image) or a figure of matplotlib, and got "
                f"{_described(value)}"
            )


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor | np.ndarray):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"


@torch.no_grad()
def marks(model: nn.Module) -> dict[str, object]:
    """What a callback must leave as it is, by name. Of a tensor it is the sum of its bits, which also sees what is
    written through `.data` and NumPy; reading them all costs a small part of a step."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    sums = [_bits(tensor.detach()).sum(dtype=torch.int64) for tensor in tensors.values()]
    found: dict[str, object] = dict(zip(tensors, torch.stack(sums).tolist() if sums else [], strict=True))
    for name, parameter in model.named_parameters():
        found[f"requires_grad of {name}"] = parameter.requires_grad
    for name, module in model.named_modules():
        hooks = [getattr(module, attribute) for attribute in vars(module) if attribute.endswith("_hooks")]
        found[f"the hooks of {name or 'the model'}"] = sum(map(len, hooks))
    switches = (torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled())
    return {**found, "the threads, default dtype or determinism of torch": switches}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.view(kinds[tensor.element_size()])


def _check(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = next((what for what in {**before, **now} if before.get(what) != now.get(what)), None)
    if changed is not None:
        raise UserCodeError(
            f"{name}: it has changed {changed}, and a callback only watches: work on a copy (copy.deepcopy(model)), or "
            "do it in the model, the task or the optimizer"
        )


def _failure(name: str, error: BaseException) -> UserError:
    """One line, with the place in the user's own file that is nearest to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_ELSEWHERE, "<"))] or frames
    short = isinstance(error, MemoryError | torch.OutOfMemoryError)
    said = printable(" ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":"), 500)
    place = f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}"
    return UserError(f"{name}: {said} ({place})", ExitCode.OUT_OF_MEMORY if short else ExitCode.USER_CODE)
