"""States of models, optimizers, schedulers and so on, as named tensors and JSON. No pickle."""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dist_train.errors import DiskError, UserError

Tensors = dict[str, Tensor]
_TENSOR, _TUPLE, _PAIRS, _COUNTER = "$tensor", "$tuple", "$pairs", "$counter"
"""The keys of JSON objects that stand for what JSON has not."""
_VERSIONS = "_metadata"
"""Of a module's state_dict, an attribute: without it some modules take it for one of torch's first, and convert it."""


def state_of(name: str, stateful: Any) -> Any:
    """The state_dict of something, or a dict itself.

    Raises:
        UserError: when it is neither.
    """
    if isinstance(stateful, dict):
        return stateful
    if isinstance(stateful, type) or not (hasattr(stateful, "state_dict") and hasattr(stateful, "load_state_dict")):
        raise UserError(f"{name} is a {type(stateful).__name__}: give what has a state_dict, or a dict of numbers")
    return stateful.state_dict()


def load_state(name: str, stateful: Any, state: Any) -> None:
    """Gives back what `state_of` gave; a dict is changed in place.

    Raises:
        RuntimeError, KeyError, ValueError: when it does not fit.
    """
    if isinstance(stateful, dict):
        stateful.clear()
        stateful.update(state)
        return
    stateful.load_state_dict(state)
    if isinstance(stateful, torch.optim.Optimizer):
        _settle(stateful, state)


def _settle(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """The saved dtypes, which load_state_dict casts to the parameter's, in the parameter's memory format, which fused
    optimizers go through beside it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, value in state["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                settled = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
                optimizer.state[parameter][name] = settled


def flattened(value: Any, place: str, tensors: Tensors) -> Any:
    """`value` for JSON; its tensors are put into `tensors`, by their places.

    Raises:
        UserError: (exit 14) naming what cannot be saved without pickle.
    """
    if isinstance(value, Tensor):
        while place in tensors:  # keys may have slashes of their own
            place += "'"
        tensors[place] = value
        return {_TENSOR: place}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value)  # NumPy's is one too
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {_TUPLE: flattened(list(value), place, tensors)}
    if isinstance(value, list):
        return [flattened(item, f"{place}/{number}", tensors) for number, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        pairs = [[key, flattened(item, f"{place}/{key}", tensors)] for key, item in value.items()]
        return {_COUNTER if isinstance(value, Counter) else _PAIRS: pairs, **_versions(value, place, tensors)}
    raise DiskError(
        f"{place} is a {type(value).__name__}, which cannot be saved without pickle: tensors, numbers, text, lists, "
        "tuples and dicts of them can be"
    )


def _versions(state: Any, place: str, tensors: Tensors) -> dict[str, Any]:
    found = getattr(state, _VERSIONS, None)
    return {} if found is None else {_VERSIONS: flattened(dict(found), f"{place}/{_VERSIONS}", tensors)}


def unflattened(tree: Any, tensors: Tensors) -> Any:
    """What was given to `flattened`.

    Raises:
        KeyError, TypeError, ValueError: when nothing of ours has made that.
    """
    if isinstance(tree, list):
        return [unflattened(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(unflattened(tree[_TUPLE], tensors))
    pairs = {key: unflattened(item, tensors) for key, item in tree[_COUNTER if _COUNTER in tree else _PAIRS]}
    if _COUNTER in tree:
        return Counter(pairs)
    if _VERSIONS not in tree:
        return pairs
    state: OrderedDict[str, Any] = OrderedDict(pairs)
    state._metadata = OrderedDict(unflattened(tree[_VERSIONS], tensors))  # type: ignore[attr-defined]
    return state
