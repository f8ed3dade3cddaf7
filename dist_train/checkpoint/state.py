"""All that survives a restart, as named tensors and JSON. No pickle.

model.safetensors      parameters and buffers
optimizer.safetensors  <parameter>/<key> for every tensor of the optimizer's state
ema.safetensors        the averaged weights, where the config asks for them
state.json             progress, the optimizer's other values, the gradient scaler
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dist_train.config.errors import ExitCode, UserError
from dist_train.config.strict_json import tagged, untagged

Tensors = dict[str, Tensor]


@dataclass(kw_only=True)
class TrainState:
    """Where the training is. Nothing else is remembered between steps, except in the model and the optimizer.

    Attributes:
        step: optimizer steps done.
        best_value: of the metric that picks the best checkpoint.
        best_step: the step it was reached at.
        improved_value: the last value that was better than the one before it by train.early_stopping.min_delta.
        stale: evaluations since then.
        metrics: of the last evaluation.
        finished: the training has reached its end, or early stopping has ended it.
        left_out_in_a_row: how many of the last steps were left out because they were not finite.
    """

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None
    improved_value: float | None = None
    stale: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    left_out_in_a_row: int = 0

    def samples_seen(self, global_batch: int) -> int:
        return self.step * global_batch


@dataclass(kw_only=True)
class Snapshot:
    """All of a state by name."""

    model: Tensors
    optimizer: Tensors
    ema: Tensors | None
    other: dict[str, Any]

    def copied(self) -> "Snapshot":
        """On the CPU, each tensor alone in memory of its own."""
        ema = None if self.ema is None else _copied(self.ema)
        return replace(self, model=_copied(self.model), optimizer=_copied(self.optimizer), ema=ema)

    def tensor_files(self) -> dict[str, Tensors]:
        """Each safetensors file's tensors. Tied weights are there under each of their names."""
        files = {"model.safetensors": self.model, "optimizer.safetensors": self.optimizer}
        return files if self.ema is None else {**files, "ema.safetensors": self.ema}

    def other_files(self) -> dict[str, bytes]:
        return {"state.json": json.dumps(tagged(self.other), indent=1).encode()}

    @classmethod
    def from_files(cls, files: dict[str, bytes]) -> "Snapshot":
        ema = files.get("ema.safetensors")
        return cls(
            model=safetensors.torch.load(files["model.safetensors"]),
            optimizer=safetensors.torch.load(files["optimizer.safetensors"]),
            ema=None if ema is None else safetensors.torch.load(ema),
            other=untagged(json.loads(files["state.json"])),
        )


def _copied(tensors: Tensors) -> Tensors:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[Tensors, dict[str, Any]]:
    """The optimizer's state by parameter name: tensors, and what is no tensor.

    Raises:
        UserError: when a value is neither a tensor nor representable in JSON.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: Tensors = {}
    values: dict[str, Any] = {}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{names[id(parameter)]}/{key}"] = value
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        kind = type(optimizer).__name__
        raise UserError(f"the state of {kind} cannot be saved: {error}", ExitCode.CHECKPOINT_IO) from None
    return tensors, values


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Tensors, values: Any) -> None:
    """Puts back what optimizer_tensors gave; the hyperparameters stay the config's."""
    groups = optimizer.state_dict()["param_groups"]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    in_order = [p for group in optimizer.param_groups for p in group["params"]]
    place = {names[id(parameter)]: index for index, parameter in enumerate(in_order)}
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**tensors, **values}.items():
        name, key = path.rsplit("/", 1)
        state.setdefault(place[name], {})[key] = _laid_out_like(in_order[place[name]], value)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _laid_out_like(parameter: Tensor, value: Any) -> Any:
    """In the parameter's memory format: fused optimizers go through both side by side, as they lie in memory."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def progress(state: TrainState) -> dict[str, Any]:
    return asdict(state)
