"""Built-in tasks by name, and the user's own."""

from collections.abc import Sequence
from inspect import signature

from dist_train.config.imports import construct
from dist_train.config.schema import Custom, TaskConfig
from dist_train.errors import UserCodeError, UserError
from dist_train.tasks.base import Loss, Predictions, Rows, Sums, Task, Totals, trainable
from dist_train.tasks.classification import Classification
from dist_train.tasks.huggingface import HuggingFace
from dist_train.tasks.language_model import LanguageModel
from dist_train.tasks.multi_label import MultiLabel
from dist_train.tasks.per_sample import PerSample
from dist_train.tasks.regression import Regression
from dist_train.tasks.segmentation import Segmentation

__all__ = ["Loss", "PerSample", "Predictions", "Rows", "Sums", "Task", "Totals", "build"]

BUILDERS: dict[str, type[Task]] = {"classification": Classification, "multi_label": MultiLabel}
BUILDERS |= {"regression": Regression, "segmentation": Segmentation}
BUILDERS |= {"language_model": LanguageModel, "huggingface": HuggingFace}


def build(
    config: TaskConfig,
    classes: Sequence[str] | None,
    *,
    vocabulary: int | None = None,
    token_bytes: Sequence[int] | None = None,
    window: int | None = None,
) -> Task:
    """The task. It is called with its keys or args, and with `classes`, how many the data has, `vocabulary` and
    `token_bytes`, if its signature has parameters of these names and the args don't give them.

    Args:
        config: the section `task`.
        classes: the names of the data's classes; None where it has none.
        vocabulary: how many tokens there are; None where the data is no text.
        token_bytes: UTF-8 bytes of each token, where that is known.
        window: tokens of each sample, where all have as many and none is left out.

    Raises:
        UserError: when it cannot be built so.
    """
    count = None if classes is None else len(classes)
    known = {"classes": count, "vocabulary": vocabulary, "token_bytes": token_bytes}
    if not isinstance(config, Custom):
        builder, args = BUILDERS[config.name], {key: value for key, value in dict(config).items() if key != "name"}
        takes = signature(builder).parameters
        if "classes" in takes and classes is None:
            missing = "give the data set an attribute `classes` with their names"
            raise UserError(f"task: {config.name} needs classes; {missing}")
        return builder(**args, **{name: value for name, value in (known | {"window": window}).items() if name in takes})
    task = construct(config, "task", offered={name: value for name, value in known.items() if value is not None})
    kind = type(task)
    if not isinstance(task, Task):
        raise UserCodeError(f"task {config.name} gave a {kind.__name__}, no dist_train.tasks.Task")
    if name := next(trainable(task), None):
        unseen = "which no optimizer sees and no checkpoint keeps: move it into the model, or set requires_grad_(False)"
        raise UserError(f"task {config.name} holds the parameter {name}, {unseen}")
    if kind.loss is Task.loss and kind.step is Task.step:
        raise UserError(f"task {config.name} has neither `loss(output, target)` nor `step(model, batch)`")
    return task
