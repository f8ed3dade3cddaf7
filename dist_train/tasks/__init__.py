"""Built-in tasks by name, and the user's own."""

from collections.abc import Sequence

from dist_train.config.imports import construct
from dist_train.config.schema import Custom, TaskConfig
from dist_train.errors import ExitCode, UserError
from dist_train.tasks.base import Task
from dist_train.tasks.classification import Classification


def build(config: TaskConfig, classes: Sequence[str] | None) -> Task:
    """The task. The user's own is called with its args, and with `classes`, how many the data has, if its signature has
    a parameter of that name and the args don't give it.

    Args:
        config: the section `task`.
        classes: the names of the data's classes; None where it has none.

    Raises:
        UserError: when it cannot be built so.
    """
    if not isinstance(config, Custom):
        if classes is None:
            raise UserError(
                "task: classification needs classes; give the data set an attribute `classes` with their names"
            )
        return Classification(classes=len(classes), label_smoothing=config.label_smoothing)
    task = construct(config, "task", offered={} if classes is None else {"classes": len(classes)})
    kind = type(task)
    if not isinstance(task, Task):
        raise UserError(f"task {config.name} gave a {kind.__name__}, no dist_train.tasks.Task", ExitCode.USER_CODE)
    if kind.loss is Task.loss and kind.step is Task.step:
        raise UserError(f"task {config.name} has neither `loss(output, target)` nor `step(model, batch)`")
    return task
