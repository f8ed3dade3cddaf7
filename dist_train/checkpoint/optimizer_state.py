"""What survives a restart of an optimizer: its state, by parameter name, and the counters that it keeps elsewhere."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.checkpoint.model_state import check_json, same
from dist_train.errors import DiskError

Tensors = dict[str, Tensor]


class OptimizerState:
    """An optimizer's state as named tensors and JSON. Make it when the optimizer is new: a value of a group or an
    attribute that has changed since is a counter, which is saved; one that has not is a hyperparameter of the config.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._new = copy.deepcopy(self._outside())

    def tensors(self) -> Tensors:
        """`<parameter>/<key>` for every tensor, themselves and not copies; `/attributes/<name>` and
        `/groups/<number>/<key>` for those that the optimizer keeps outside of the state and has changed."""
        *groups, attributes = self._changed()
        found = self._state() | {f"/attributes/{name}": value for name, value in attributes.items()}
        for number, group in enumerate(groups):
            found |= {f"/groups/{number}/{key}": value for key, value in group.items()}
        return {path: value for path, value in found.items() if isinstance(value, Tensor)}

    def values(self) -> dict[str, Any]:
        """`<parameter>/<key>` for everything else in the state.

        Raises:
            UserError: (exit 14) when something in it cannot be saved.
        """
        return self._checked(self._state())

    def counters(self) -> dict[str, Any]:
        """What has changed outside of the state: `groups`, a dict for each, and `attributes`. Raises as `values`."""
        *groups, attributes = (self._checked(found, tuples=True) for found in self._changed())
        return {"groups": groups, "attributes": attributes}

    def _state(self) -> dict[str, Any]:
        return {
            f"{self._name(parameter)}/{key}": value
            for parameter, entries in self._optimizer.state.items()
            for key, value in entries.items()
        }

    def _changed(self) -> list[dict[str, Any]]:
        """The values outside of the state that have changed since the optimizer was new."""
        return [
            {key: value for key, value in now.items() if key not in before or not same(value, before[key])}
            for now, before in zip(self._outside(), self._new, strict=True)
        ]

    def _checked(self, values: dict[str, Any], *, tuples: bool = False) -> dict[str, Any]:
        """The values that are no tensors. Raises where JSON would change one; `tuples`: except tuples, which `load`
        mends."""
        plain = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        for name, value in plain.items():
            given = list(value) if tuples and isinstance(value, tuple) else value
            check_json(given, f"what {self._kind} keeps as {name}")
        return plain

    def load(self, tensors: Tensors, values: dict[str, Any], counters: dict[str, Any] | None) -> None:
        """Loads what `tensors`, `values` and `counters` returned; the hyperparameters stay the config's."""
        groups = self._optimizer.state_dict()["param_groups"]
        in_order = [p for group in self._optimizer.param_groups for p in group["params"]]
        place = {self._name(parameter): index for index, parameter in enumerate(in_order)}
        state: dict[int, dict[str, Any]] = {}
        outside = {path: tensor for path, tensor in tensors.items() if path.startswith("/")}
        for path, value in {**tensors, **values}.items():
            if path in outside:
                continue
            name, key = path.rsplit("/", 1)
            state.setdefault(place[name], {})[key] = _laid_out_like(in_order[place[name]], value)
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        for index, entries in state.items():  # load_state_dict casts to the parameter's dtype
            loaded = self._optimizer.state[in_order[index]]
            for key, value in entries.items():
                if isinstance(value, Tensor) and value.dtype != loaded[key].dtype:
                    loaded[key] = value.to(loaded[key].device, copy=True)
        if counters is not None:
            for group, changed in zip(self._optimizer.param_groups, counters["groups"], strict=True):
                was_tuple = {key for key in changed if isinstance(group.get(key), tuple)}
                group.update({key: tuple(value) if key in was_tuple else value for key, value in changed.items()})
            vars(self._optimizer).update(counters["attributes"])
        device = in_order[0].device
        for path, tensor in outside.items():
            _, kind, *place_of = path.split("/")
            owner = vars(self._optimizer) if kind == "attributes" else self._optimizer.param_groups[int(place_of[0])]
            now = owner.get(place_of[-1])
            owner[place_of[-1]] = tensor.to(now.device if isinstance(now, Tensor) else device, copy=True)

    def _name(self, parameter: Any) -> str:
        if id(parameter) not in self._names:
            raise DiskError(
                f"{self._kind} keeps state under {str(parameter)[:40]!r}, which is no parameter of the model: keep it "
                "in a parameter's state, in a group, or as an attribute"
            )
        return self._names[id(parameter)]

    def _outside(self) -> list[dict[str, Any]]:
        """The values of each group, without what the loop sets itself; then the attributes of a user's optimizer.
        torch's own optimizers keep nothing there that a step depends on."""
        groups = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self._optimizer.param_groups
        ]
        if type(self._optimizer).__module__.startswith("torch."):
            return [*groups, {}]
        everywhere = vars(torch.optim.SGD([torch.zeros(1)]))
        own = {name: value for name, value in vars(self._optimizer).items() if name not in everywhere}
        return [*groups, {name: value for name, value in own.items() if _is_state(value)}]

    @property
    def _kind(self) -> str:
        return type(self._optimizer).__name__


def _is_state(value: Any) -> bool:
    """Whether it is made of numbers, text and tensors alone. Parameters do not count: they are the model's."""
    if isinstance(value, list):
        return all(map(_is_state, value))
    if isinstance(value, dict):
        return all(map(_is_state, value.values()))
    is_tensor = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    return is_tensor or isinstance(value, bool | int | float | str | None)


def _laid_out_like(parameter: Tensor, value: Any) -> Any:
    """The value in the parameter's memory format: fused optimizers go through the memory of both side by side."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
