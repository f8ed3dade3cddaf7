"""Models of the library transformers, which compute their own loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dist_train.errors import ExitCode, UserError
from dist_train.tasks.base import Loss, Model, Predictions, Sums, Task, Totals, counted, tensor_of

if TYPE_CHECKING:
    from dist_train.data.batch import Microbatch

_IGNORED = -100
"""The label that transformers' losses leave out."""
_NEXT_TOKEN = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of models whose labels are their inputs, and are shifted by one in the model."""


class HuggingFace(Task):
    """The loss is the model's own. A sample is a dict of its inputs with `labels`, or a pair of a dict and the labels.

    The model's loss is a mean over the labels that are not -100, so it is multiplied by how many those are, and divided
    by those of the whole global batch.
    """

    def step(self, model: Model, batch: "Microbatch") -> Loss:
        inputs = _inputs(batch)
        output = model(**inputs)
        loss = getattr(output, "loss", None)
        if not isinstance(loss, Tensor):
            raise UserError(
                f"task huggingface: the model gave no loss for the inputs {', '.join(inputs)}; it needs `labels` among "
                "them, or as the target",
                ExitCode.USER_CODE,
            )
        count = _valid(model, inputs).sum() if "labels" in inputs else len(batch.indices)
        return Loss(loss * count, count)

    def evaluate(self, model: Model, batch: "Microbatch") -> Sums:
        """loss, count; and right, where the labels are whole numbers and the model has a score for each."""
        inputs = _inputs(batch)
        output = model(**inputs)
        valid = _valid(model, inputs) if "labels" in inputs else torch.ones(len(batch.indices), dtype=torch.bool)
        count = valid.sum()
        sums = {"loss": (output.loss * count).double(), "count": count}
        scores, labels = getattr(output, "logits", None), inputs.get("labels")
        if isinstance(scores, Tensor) and labels is not None and not labels.is_floating_point():
            guess = scores.argmax(-1)
            if _is_shifted(model):
                guess, labels = guess[:, :-1], labels[:, 1:]
            if guess.shape == labels.shape:
                sums["right"] = (valid & (guess == labels)).sum()
        return sums

    def predict(self, model: Model, batch: "Microbatch") -> Predictions:
        """What the model's head implies: numbers, labels, a class, or one for each token or pixel."""
        scores = tensor_of(model(**_inputs(batch)), len(batch.indices))
        problem = getattr(getattr(model, "config", None), "problem_type", None)
        if scores.ndim > 2:
            return Predictions("places", scores.argmax(1 if scores.ndim == 4 else -1))
        if problem == "multi_label_classification":
            return Predictions("labels", scores.sigmoid())
        if problem == "regression" or scores.shape[1:] in ((), (1,)):
            return Predictions("numbers", scores)
        return Predictions("probabilities", scores.softmax(1))

    def generates(self, model: Model) -> bool:
        return _is_shifted(model)

    def metrics(self, sums: Totals) -> dict[str, float]:
        """loss; accuracy, of samples or tokens, where the model has scores of classes."""
        count = counted(sums)
        found = {"loss": sums["loss"].item() / count}
        return {**found, "accuracy": sums["right"].item() / count} if "right" in sums else found


def _inputs(batch: "Microbatch") -> dict[str, Any]:
    inputs = dict(batch.inputs) if isinstance(batch.inputs, Mapping) else {"input_ids": batch.inputs}
    return inputs if batch.targets is None else {**inputs, "labels": batch.targets}


def _is_shifted(model: Model) -> bool:
    return type(getattr(model, "module", model)).__name__.endswith(_NEXT_TOKEN)


def _valid(model: Model, inputs: Mapping[str, Any]) -> Tensor:
    """bool, of the labels' shape, less the first token where the model takes the labels for its inputs."""
    labels = inputs["labels"]
    labels = labels[:, 1:] if _is_shifted(model) else labels
    return labels == labels if labels.is_floating_point() else labels != _IGNORED
