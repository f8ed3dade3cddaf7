"""Texts that a language model writes at each evaluation, `tracking.texts`. They change no result."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dist_train.config.schema import RunConfig
from dist_train.data.datasets import Splits
from dist_train.errors import DataError, UserError
from dist_train.evaluate import evaluating
from dist_train.learner import Learner, autocast
from dist_train.randomness import Generators, key
from dist_train.tasks.generate import generate
from dist_train.tasks.language_model import LanguageModel


def write_texts(
    config: RunConfig, learner: Learner, splits: Splits, device: torch.device, step: int, length: int | None = None
) -> list[str]:
    """`tracking.texts.count` texts, each with the prompt in front; a function of weights, seed and step.

    Args:
        length: tokens of each, in place of `tracking.texts.length`.

    Raises:
        UserError: (exit 2) when the data or the task has no text, (exit 13) when there is no token for the prompt.
    """
    asked, data = config.tracking.texts, splits.train
    if asked.count == 0:
        return []
    if not isinstance(learner.task, LanguageModel):
        raise UserError(f"tracking.texts: task {config.task.name} writes none; a language_model does")
    if missing := [method for method in ("encode", "decode") if not hasattr(data, method)]:
        raise UserError(
            f"tracking.texts: data {config.data.name} has no {' and no '.join(missing)}; a text needs encode(text), "
            "which gives its tokens, and decode(tokens), which gives their text"
        )
    prompt = torch.tensor([list(map(int, data.encode(asked.prompt)))], dtype=torch.int64, device=device)
    if prompt.numel() == 0:
        raise DataError("tracking.texts.prompt has no token, and a text begins with one at least")
    model, found = learner.evaluated, []
    with evaluating(model, config.seed, Generators(model, learner.task)) as begin, _eager(config):
        for number in range(asked.count):
            begin(number)
            context = splits.shape[0] if splits.shape else prompt.shape[1] + asked.length
            draws = key(config.seed, "text", step, number)
            with autocast(config, device):
                tokens = generate(
                    model, prompt, length or asked.length, context=context, temperature=asked.temperature, key=draws
                )
            found.append(asked.prompt + data.decode(tokens[0].tolist()))
    return found


def _eager(config: RunConfig) -> AbstractContextManager[Any]:
    """Texts have many lengths: what is compiled for them could be taken for a batch, on this rank alone."""
    return torch.compiler.set_stance("force_eager") if config.model.compile else nullcontext()
