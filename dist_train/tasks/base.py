"""What is learned: from a batch to a loss, and to the metrics of an evaluation. Nothing else looks into a batch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dist_train.errors import DataError, UserCodeError, UserError
from dist_train.tasks.per_sample import PerSample

if TYPE_CHECKING:
    from dist_train.data.batch import Microbatch

Count = Tensor | int
Model = Callable[..., Any]
"""What `step` and `evaluate` are given: it is called as the user's own module is, and gives what that gives."""


class Rows(NamedTuple):
    """Among an evaluation batch's sums: numbers of each sample that no sum can stand for, as the scores that a ranking
    needs. Those of all batches are put one after another, in the order of the samples.

    Attributes:
        values: [m, ...], of one dtype and shape a row for all batches. The whole split is held in memory.
    """

    values: Tensor


Sums = Mapping[str, Tensor | Rows | PerSample]
"""Named sums over samples, of fixed shapes: int64 for what is counted, float64 for what is measured. Those of two
batches are added name by name, so that a metric is exact however the batches are distributed. `Rows` are joined, and of
`PerSample` the worst are kept."""

Totals = dict[str, Tensor]
"""The same over a whole split, on the CPU: sums int64 or float64, and rows [samples, ...]."""


@dataclass(frozen=True)
class Loss:
    """What one microbatch gives to learn from.

    Attributes:
        total: the sum over the valid targets, a scalar to differentiate. The system divides the sums of all ranks by
            the counts of all ranks.
        count: how many targets those are.
        figures: more to log, by name: the sum, a scalar without a gradient, and the count that it is divided by. Every
            microbatch has the same names.
    """

    total: Tensor
    count: Count
    figures: Mapping[str, tuple[Tensor, Count]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: "Loss | tuple[Tensor, Count]") -> "Loss":
        return found if isinstance(found, Loss) else cls(*found)


@dataclass(frozen=True)
class Predictions:
    """What a model says of the m samples of a batch.

    Attributes:
        kind: what the values are. `probabilities`, float [m, C]: of one class of C; `scores`: the same of no scale,
            and numbers where the data has no C classes; `labels`: the probability of each of C classes by itself;
            `numbers`, [m, …]; `places`, int64 [m, …]: the number of a class for each pixel or token.
    """

    kind: Literal["probabilities", "scores", "labels", "numbers", "places"]
    values: Tensor


def tensor_of(output: Any, rows: int) -> Tensor:
    """What a model gave for `rows` samples, float32 [rows, …]; of an object, its `logits`.

    Raises:
        UserError: (exit 10) when it is no such tensor.
    """
    values = getattr(output, "logits", output)
    if not isinstance(values, Tensor) or values.shape[:1] != (rows,):
        advice = ": give the task a method predict(model, batch)"
        raise unfit(f"predict takes a tensor of {rows} rows", values, advice)
    return values.float()


def unfit(takes: str, output: Any, advice: str = "") -> UserError:
    """The error for what a model gave; `takes` says what is taken from it."""
    given = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    return UserCodeError(f"{takes} from the model, which gave {given}{advice}")


def trainable(task: "Task") -> Iterator[str]:
    """Names of what a task holds that is to be learned, and that no optimizer would see."""
    for name, value in (("", task), *vars(task).items()):
        held = value.named_parameters(name) if isinstance(value, nn.Module) else [(name, value)]
        yield from (path for path, item in held if isinstance(item, Tensor) and item.requires_grad)


class Task:
    """Derive from it, and write `loss`, or `step` where a loss of output and target is not enough. The rest has an
    answer already, which evaluates the loss alone.

    Attributes:
        counts_every_sample: the loss always counts as many targets as there are samples. It can then be normalised
            over the global batch without asking the other ranks; False is always right, and costs one small sum a step.
        targets_per_sample: the same for more targets than one, as many in every sample; None where that is not known.
        needs_targets: a sample without a target is refused, by `check_targets`.
        keywords: whether inputs that are a mapping reach the model as keyword arguments.
        whole_pictures: to predict, a picture is brought to the model's size as a whole, and not only its middle.
    """

    counts_every_sample: bool = False
    targets_per_sample: int | None = None
    needs_targets: bool = False
    keywords: bool = False
    whole_pictures: bool = False

    def forward(self, model: Model, inputs: Any) -> Any:
        """What the model gives for the inputs of a batch."""
        return model(**inputs) if self.keywords and isinstance(inputs, Mapping) else model(inputs)

    def step(self, model: Model, batch: "Microbatch") -> Loss:
        """Forward and loss of one microbatch."""
        return Loss.of(self.loss(self.forward(model, batch.inputs), batch.targets))

    def evaluate(self, model: Model, batch: "Microbatch") -> Sums:
        """What one evaluation batch adds to the sums, on the device, from which `metrics` can be had."""
        if type(self).statistics is not Task.statistics:
            return self.statistics(self.forward(model, batch.inputs), batch.targets)
        return _sums_of(self.step(model, batch))

    def predict(self, model: Model, batch: "Microbatch") -> Predictions:
        """What the model says of a batch, which has no targets. Without one of your own, what it gives as it is."""
        values = tensor_of(self.forward(model, batch.inputs), len(batch.indices))
        return Predictions("scores" if values.ndim == 2 else "numbers", values)

    def generates(self, model: Model) -> bool:
        """Whether a prediction goes on with a text: the model gives scores of the next token at each place."""
        return False

    def loss(self, output: Any, target: Any) -> Loss | tuple[Tensor, Count]:
        """The training loss of one microbatch.

        Args:
            output: what the model gave for its inputs.
            target: what the dataset gave, stacked.

        Returns:
            The sum over the valid targets, a scalar to differentiate, and how many those are; or a `Loss`.
        """
        raise NotImplementedError

    def check_targets(self, target: Any, name_of: Callable[[int], str]) -> Any:
        """A batch's targets as `loss` and `statistics` take them; called for every batch, before anything is computed.

        Without one of your own, all are taken as they are.

        Args:
            target: what the dataset gave, stacked, on the CPU still.
            name_of: from a row of the batch to the sample's name, for a message: "sample 3".

        Raises:
            UserError: when there is one that the task can't learn from.
        """
        return target

    def statistics(self, output: Any, target: Any) -> Sums:
        """Sums over one evaluation batch, on the device of the output, from which `metrics` can be had."""
        return _sums_of(Loss.of(self.loss(output, target)))

    def metrics(self, sums: Totals) -> dict[str, float]:
        """The metrics by name, from the sums over the whole split, on the CPU.

        Raises:
            UserError: when there was nothing to evaluate.
        """
        count = counted(sums)
        found = {"loss": sums["loss"].item() / count}
        for name in (name.removesuffix(":sum") for name in sums if name.endswith(":sum")):
            found[name] = sums[f"{name}:sum"].item() / max(sums[f"{name}:count"].item(), 1)
        return found

    def per_class(self, sums: Totals) -> dict[str, list[Any]]:
        """Metrics of every class by name, each a list in the order of the classes; empty where there are no classes."""
        return {}

    def confusion(self, sums: Totals) -> np.ndarray | None:
        """int64 [classes, classes], rows the true class, columns the predicted; None where there is none."""
        return None

    def pairs(self, sums: Totals) -> np.ndarray | None:
        """Truth and prediction of samples spread over the split, [samples, numbers, 2]; None where those are not
        numbers."""
        return None


def refused(target: Any, name_of: Callable[[int], str], takes: str) -> UserError:
    """The error for targets of a type or shape that a task cannot learn from; `takes` says what it can."""
    if isinstance(target, Tensor):
        shape = f" of shape {list(target.shape[1:])}" if target.ndim != 1 else ""
        given = f"{str(target.dtype).removeprefix('torch.')}{shape}"
    elif isinstance(target, list | tuple) and target:
        given = "text" if isinstance(target[0], str) else f"a {type(target).__name__}"
    else:
        given = "missing" if target is None else f"a {type(target).__name__}"
    return DataError(f"{name_of(0)}: the target is {given}; {takes}")


def _sums_of(loss: Loss) -> Sums:
    sums: dict[str, Count] = {"loss": loss.total, "count": loss.count}
    for name, (value, count) in loss.figures.items():
        sums |= {f"{name}:sum": value, f"{name}:count": count}
    return {name: _summed(value, loss.total.device) for name, value in sums.items()}


def _summed(value: Count, device: torch.device) -> Tensor:
    """As sums are: float64 where it is measured, int64 where it is counted."""
    tensor = torch.as_tensor(value, device=device).detach()
    return tensor.double() if tensor.is_floating_point() else tensor.long()


def counted(sums: Totals) -> int:
    """How many targets were evaluated, `count`.

    Raises:
        UserError: when there were none, so that there is no mean.
    """
    count = int(sums.get("count", 0))  # no batches, no sums
    if count == 0:
        raise DataError("the evaluation split has no valid targets, so there is nothing to evaluate")
    return count
