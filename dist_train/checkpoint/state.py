"""All that survives a restart, as named tensors and JSON. No pickle.

model.safetensors      parameters and buffers; buffers outside of the state_dict where the training has changed them
optimizer.safetensors  <parameter>/<key> for every tensor of the optimizer's state
ema.safetensors        the averaged weights, where the config asks for them
state.json             progress, the model's extra state, the optimizer's other values, the gradient scaler
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from dist_train.checkpoint.model_state import bytes_of, load_model
from dist_train.rundir.records import Best
from dist_train.rundir.strict_json import tagged

Tensors = dict[str, Tensor]
AVERAGED = "n_averaged"
"""The name of a tensor among the averaged weights: how many steps went into them, int64 []."""


@dataclass(kw_only=True)
class TrainState:
    """How far the training is. Between steps nothing else is kept, except in the model and the optimizer.

    Attributes:
        step: optimizer steps done.
        best_value: the best value so far of the metric that picks the best checkpoint.
        best_step: the step at which that value was reached.
        improved_value: the last value that was better than the one before it by train.early_stopping.min_delta.
        stale: evaluations since that value.
        metrics: those of the last evaluation.
        finished: the training has reached its end, or early stopping has ended it.
        left_out_in_a_row: how many of the last steps were skipped because they were not finite.
        broken: the places of the training samples that could not be read, in the order in which they were met.
    """

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None
    improved_value: float | None = None
    stale: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    left_out_in_a_row: int = 0
    broken: list[int] = field(default_factory=list)

    def samples_seen(self, global_batch: int) -> int:
        return self.step * global_batch

    def best(self, metric: str) -> Best | None:
        """The best evaluation by `metric`; None before there is one."""
        if self.best_step is None or self.best_value is None:
            return None
        return Best(metric=metric, value=self.best_value, step=self.best_step)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All of a state by name."""

    model: Tensors
    optimizer: Tensors
    ema: Tensors | None
    other: dict[str, Any]

    def copied(self) -> "Snapshot":
        """A copy on the CPU, each tensor in memory of its own."""
        ema = None if self.ema is None else _copied(self.ema)
        return replace(self, model=_copied(self.model), optimizer=_copied(self.optimizer), ema=ema)

    def load_evaluated(self, model: nn.Module) -> None:
        """Gives `model` the weights that are evaluated: the averaged ones, where there are some.

        Raises:
            RuntimeError: when names or shapes are not the model's.
        """
        tensors = {name: t for name, t in (self.ema or self.model).items() if name != AVERAGED}
        load_model(model, tensors, self.other.get("model"))

    def digests(self) -> dict[str, str]:
        """A digest of each tensor and value, by name."""
        files = self.tensor_files().items()
        tensors = {f"{file}/{name}": _digest(tensor) for file, ts in files for name, tensor in ts.items()}
        others = {name: repr(value) for name, value in self.other.items() if name != "model"}
        extra = self.other.get("model", {}).get("extra", {})
        return {**tensors, **others, **{f"the extra state {name}": repr(value) for name, value in extra.items()}}

    def tensor_files(self) -> dict[str, Tensors]:
        """Each safetensors file's tensors. Tied weights are there under each of their names."""
        files = {"model.safetensors": self.model, "optimizer.safetensors": self.optimizer}
        return files if self.ema is None else {**files, "ema.safetensors": self.ema}

    def other_files(self) -> dict[str, bytes]:
        return {"state.json": json.dumps(tagged(self.other), indent=1).encode()}

    @classmethod
    def of(cls, files: dict[str, Tensors], other: dict[str, Any]) -> "Snapshot":
        """The snapshot from what `tensor_files` returned, and the other values."""
        model, optimizer = files["model.safetensors"], files["optimizer.safetensors"]
        return cls(model=model, optimizer=optimizer, ema=files.get("ema.safetensors"), other=other)

    @property
    def state(self) -> TrainState:
        return TrainState(**self.other["progress"])


def _digest(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(bytes_of(tensor).cpu().numpy().data).hexdigest()}"


def _copied(tensors: Tensors) -> Tensors:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
