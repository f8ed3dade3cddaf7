"""`python -m dist_train.commands.describe CONFIG [a.b=c …]`: what only torch can say about a plan, as JSON.

Nothing is downloaded, trained or written, but for the tokens of a text, which go into their cache.
"""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from dist_train import models, tasks
from dist_train.callbacks import build_callbacks
from dist_train.checkpoint.optimizer_state import OptimizerState
from dist_train.config.problems import ConfigError
from dist_train.config.replies import Description
from dist_train.config.schema import RunConfig
from dist_train.config.source import load
from dist_train.control.due import Due
from dist_train.data import datasets
from dist_train.data.cache.survey import holding, parts
from dist_train.data.datasets import Splits
from dist_train.errors import ExitCode, UserError
from dist_train.models.deterministic import explain_nondeterministic, without_deterministic_form
from dist_train.optim.optimizer import build_optimizer
from dist_train.optim.schedule import Schedule
from dist_train.parallel.ranks import Ranks

CURVE_POINTS = 40


class _NotYet(Exception):
    """Something that keeps the description incomplete, but would not keep a training from running."""


def describe(config: RunConfig) -> Description:
    facts = Description()
    try:
        splits = _splits(config)
        facts.train_samples, facts.evaluation_samples = len(splits.train), len(splits.evaluation)
        facts.notes, facts.cache = [*splits.notes], [holding(part) for part in parts(splits)]
        _add_length(facts, config, len(splits.train))
        build_callbacks(config, Ranks.from_environment())
        tasks.build(config.task, splits.classes, **splits.of_tokens)
        starts = models.can_start(config.model)
        model = models.build(config.model, seed=config.seed, starts=starts, **splits.offered)
        _add_size(facts, config, model)
        if config.exact and (found := [*without_deterministic_form(model)]):
            facts.not_on_a_gpu = explain_nondeterministic(found)
    except _NotYet as error:
        facts.problem = str(error)
        if facts.total_steps is None and config.train.duration.unit == "steps":
            facts.total_steps = int(config.train.duration.value)
    except UserError as error:
        facts.problem, facts.exit_code = str(error), int(error.code)
    except Exception as error:  # of the user's own data set, task or model
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())
        facts.problem = f"{type(error).__name__}: {text} ({where.filename}:{where.lineno}, in {where.name})"
        facts.exit_code = int(ExitCode.USER_CODE)
    return facts


def _splits(config: RunConfig) -> Splits:
    """The data, if it exists already; nothing is downloaded."""
    if not any(getattr(data, "download", False) for data in (config.data, config.eval.data)):
        return datasets.build_all(config)
    there = {
        "data": _as_it_is(config.data),
        "eval": config.eval.model_copy(update={"data": _as_it_is(config.eval.data)}),
    }
    try:
        return datasets.build_all(config.model_copy(update=there))
    except UserError:
        raise _NotYet(f"{config.data.name} is not there yet; the training downloads it") from None


def _as_it_is(data: Any) -> Any:
    return data.model_copy(update={"download": False}) if hasattr(data, "download") else data


def _add_length(facts: Description, config: RunConfig, samples: int) -> None:
    steps_per_epoch = samples // config.batch.global_size
    if steps_per_epoch == 0:
        raise UserError(f"{samples} training samples do not fill a global batch of {config.batch.global_size}")
    total = Due.of(config, steps_per_epoch).total_steps
    schedule = Schedule.of(config, steps_per_epoch)
    facts.steps_per_epoch, facts.total_steps = steps_per_epoch, total
    facts.lr = [schedule.lr(i * (total - 1) // (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]


def _add_size(facts: Description, config: RunConfig, model: torch.nn.Module) -> None:
    """Parameters, and the bytes of a checkpoint, measured after a step with gradients of zero."""
    optimizer = build_optimizer(config.optimizer, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    weights = [value for value in model.state_dict().values() if isinstance(value, torch.Tensor)]
    state_bytes = sum(t.nbytes for t in weights) * (2 if config.train.ema_decay is not None else 1)
    optimizer.step()
    facts.state_bytes = state_bytes + sum(t.nbytes for t in OptimizerState(optimizer, model).tensors().values())
    facts.parameters = sum(p.numel() for p in model.parameters())
    facts.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)


def main(argv: Sequence[str]) -> None:
    try:
        describe(load(argv[0], argv[1:])).send()
    except ConfigError as error:  # on stdout like all results: libraries warn on stderr
        Description(problem=str(error), exit_code=int(ExitCode.CONFIG)).send()


if __name__ == "__main__":
    main(sys.argv[1:])
