"""Models of the library transformers, which compute their own loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dist_train.errors import UserCodeError
from dist_train.tasks.base import Loss, Model, Predictions, Sums, Task, Totals, counted, tensor_of
from dist_train.tasks.per_sample import PerSample, of_numbers, of_tokens

if TYPE_CHECKING:
    from dist_train.data.batch import Microbatch

_IGNORED = -100
"""The label that transformers' losses leave out."""
_NEXT_TOKEN = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of models whose labels are their inputs, and are shifted by one in the model."""
_TOKENS = (*_NEXT_TOKEN, "ForMaskedLM", "ForConditionalGeneration")
"""Of models whose labels are tokens."""


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
            raise UserCodeError(
                f"task huggingface: the model gave no loss for the inputs {', '.join(inputs)}; it needs `labels` among "
                "them, or as the target"
            )
        count = _valid(model, inputs).sum() if "labels" in inputs else len(batch.indices)
        return Loss(loss * count, count)

    def evaluate(self, model: Model, batch: "Microbatch") -> Sums:
        """loss, count; right, where the labels are whole numbers and the model has a score for each; and what is shown
        of each sample, where it can be told from the scores: its loss is then that of the model's kind, without what
        the model may add to it."""
        inputs = _inputs(batch)
        output = model(**inputs)
        valid = _valid(model, inputs) if "labels" in inputs else torch.ones(len(batch.indices), dtype=torch.bool)
        count = valid.sum()
        sums: dict[str, Any] = {"loss": (output.loss * count).double(), "count": count}
        scores, labels = getattr(output, "logits", None), inputs.get("labels")
        if isinstance(scores, Tensor) and labels is not None and not labels.is_floating_point():
            text = inputs.get("input_ids", labels) if _ends(model, (*_NEXT_TOKEN, "ForMaskedLM")) else labels
            if _is_shifted(model):
                scores, labels, text = scores[:, :-1], labels[:, 1:], text[:, 1:]
            guess = scores.argmax(-1)
            if guess.shape == labels.shape:
                sums["right"] = (valid & (guess == labels)).sum()
                is_text = _ends(model, _TOKENS) and text.shape == labels.shape
                if labels.ndim <= 2:
                    sums["samples"] = _shown_classes(scores, guess, labels, valid, text if is_text else None)
        elif isinstance(scores, Tensor) and labels is not None and scores.numel() == labels.numel():
            sums["samples"] = _shown_numbers(scores.float().reshape(labels.shape), labels.float(), _problem(model))
        return sums

    def predict(self, model: Model, batch: "Microbatch") -> Predictions:
        """What the model's head implies: numbers, labels, a class, or one for each token or pixel."""
        scores = tensor_of(model(**_inputs(batch)), len(batch.indices))
        problem = _problem(model)
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
        found = super().metrics(sums)
        return {**found, "accuracy": sums["right"].item() / counted(sums)} if "right" in sums else found


def _inputs(batch: "Microbatch") -> dict[str, Any]:
    inputs = dict(batch.inputs) if isinstance(batch.inputs, Mapping) else {"input_ids": batch.inputs}
    return inputs if batch.targets is None else {**inputs, "labels": batch.targets}


def _is_shifted(model: Model) -> bool:
    return _ends(model, _NEXT_TOKEN)


def _ends(model: Model, names: tuple[str, ...]) -> bool:
    return type(getattr(model, "module", model)).__name__.endswith(names)


def _problem(model: Model) -> str | None:
    return getattr(getattr(model, "config", None), "problem_type", None)


def _shown_classes(scores: Tensor, guess: Tensor, labels: Tensor, valid: Tensor, text: Tensor | None) -> PerSample:
    """Of labels [m], or [m, T] with the text, where they are tokens."""
    scores = scores.flatten(0, -2)
    known = torch.where(valid, labels.clamp(0, scores.shape[-1] - 1), _IGNORED)  # as a loss of one's own may have them
    losses = F.cross_entropy(scores.float(), known.flatten(), ignore_index=_IGNORED, reduction="none")
    if labels.ndim == 1:
        losses = torch.where(valid, losses, -torch.inf)
        return PerSample(losses, truth=labels, prediction=guess, probability=scores.float().softmax(1).amax(1))
    found = of_tokens(losses, valid, scores, labels, text)
    return found if text is not None else found._replace(text=None)


def _shown_numbers(scores: Tensor, labels: Tensor, problem: str | None) -> PerSample:
    if problem == "multi_label_classification":
        losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(1)
        return PerSample(losses, truth=labels > 0.5, prediction=scores > 0)
    return of_numbers((scores - labels).square().reshape(len(labels), -1).mean(1), labels, scores)


def _valid(model: Model, inputs: Mapping[str, Any]) -> Tensor:
    """bool, of the labels' shape, less the first token where the model takes the labels for its inputs."""
    labels = inputs["labels"]
    labels = labels[:, 1:] if _is_shifted(model) else labels
    return labels == labels if labels.is_floating_point() else labels != _IGNORED
