"""Built-in tasks by name, and the user's own."""

from collections.abc import Callable, Sequence

from dist_train.config.imports import construct
from dist_train.config.schema import Custom, TaskConfig
from dist_train.errors import ExitCode, UserError
from dist_train.tasks.base import Loss, Predictions, Rows, Sums, Task, Totals, trainable
from dist_train.tasks.classification import Classification
from dist_train.tasks.huggingface import HuggingFace
from dist_train.tasks.language_model import LanguageModel
from dist_train.tasks.multi_label import MultiLabel
from dist_train.tasks.per_sample import PerSample
from dist_train.tasks.regression import Regression
from dist_train.tasks.segmentation import Segmentation

__all__ = ["Loss", "PerSample", "Predictions", "Rows", "Sums", "Task", "Totals", "build"]

_NEED_CLASSES: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "segmentation": Segmentation,
}


def build(
    config: TaskConfig,
    classes: Sequence[str] | None,
    *,
    vocabulary: int | None = None,
    token_bytes: Sequence[int] | None = None,
    window: int | None = None,
) -> Task:
    """The task. The user's own is called with its args, and with `classes`, how many the data has, and `vocabulary` and
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
    if not isinstance(config, Custom):
        args = {name: value for name, value in dict(config).items() if name != "name"}
        if (kind := _NEED_CLASSES.get(config.name)) is not None:
            if classes is None:
                raise UserError(
                    f"task: {config.name} needs classes; give the data set an attribute `classes` with their names"
                )
            return kind(classes=len(classes), **args)
        if config.name == "regression":
            return Regression(**args)
        if config.name == "huggingface":
            return HuggingFace()
        return LanguageModel(vocabulary=vocabulary, token_bytes=token_bytes, window=window, **args)
    known = {"classes": classes and len(classes), "vocabulary": vocabulary, "token_bytes": token_bytes}
    task = construct(config, "task", offered={name: value for name, value in known.items() if value is not None})
    kind = type(task)
    if not isinstance(task, Task):
        raise UserError(f"task {config.name} gave a {kind.__name__}, no dist_train.tasks.Task", ExitCode.USER_CODE)
    if name := next(trainable(task), None):
        unseen = "which no optimizer sees and no checkpoint keeps: move it into the model, or set requires_grad_(False)"
        raise UserError(f"task {config.name} holds the parameter {name}, {unseen}")
    if kind.loss is Task.loss and kind.step is Task.step:
        raise UserError(f"task {config.name} has neither `loss(output, target)` nor `step(model, batch)`")
    return task
