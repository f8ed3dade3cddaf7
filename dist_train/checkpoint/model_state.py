"""What survives a restart of a model: the tensors of its state_dict, buffers outside of it that the training has
changed, the extra state of its modules, and the versions of its state_dict.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.errors import DiskError

Tensors = dict[str, Tensor]


def constants_of(model: nn.Module) -> Tensors:
    """Copies of the buffers that are not part of the state_dict: masks and caches, which mostly never change."""
    return {name: buffer.clone() for name, buffer in _unsaved(model).items()}


def tensors_of(model: nn.Module, constants: Tensors) -> Tensors:
    """All tensors by name, themselves and not copies.

    Args:
        constants: what constants_of returned when the model was new. Buffers that still equal these are skipped.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    changed = {n: b for n, b in _unsaved(model).items() if n in constants and not torch.equal(b, constants[n])}
    return {**tensors, **changed}


def others_of(model: nn.Module) -> dict[str, Any]:
    """Everything but tensors, for JSON: extra state by its name in the state_dict, and the state_dict's versions.

    Raises:
        UserError: (exit 14) when a module's extra state is neither a tensor nor what JSON gives back as it was.
    """
    state = model.state_dict()
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in extra.items():
        module = model.get_submodule(name.rpartition(".")[0])
        check_json(value, f"the extra state of {type(module).__name__} ({name})")
    return {"extra": extra, "versions": dict(getattr(state, "_metadata", {}))}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], others: Mapping[str, Any] | None) -> None:
    """Loads what `tensors_of` and `others_of` returned; `others` is None in older checkpoints.

    Raises:
        RuntimeError: when names or shapes are not the model's.
    """
    others = others or {}
    unsaved = _unsaved(model)
    state: OrderedDict[str, Any] = OrderedDict((n, t) for n, t in tensors.items() if n not in unsaved)
    state.update(others.get("extra", {}))
    # Without its versions, load_state_dict takes a state_dict for a very old one, and some modules convert it.
    own = getattr(model.state_dict(), "_metadata", {})  # a state_dict of the user's may have none
    state._metadata = OrderedDict(others.get("versions") or own)  # type: ignore[attr-defined]
    model.load_state_dict(state)
    with torch.no_grad():
        for name in unsaved.keys() & tensors.keys():
            unsaved[name].copy_(tensors[name])


def check_json(value: Any, what: str) -> None:
    """Raises UserError (exit 14) unless JSON gives `value` back as it was."""
    try:
        # Compared by repr: 1 and 1.0 differ, and nan equals itself.
        is_same = repr(json.loads(json.dumps(value))) == repr(_plain(value))
        reason = "it changes on its way through JSON, as tuples and keys that are no text do"
    except (TypeError, ValueError, RecursionError) as error:
        is_same, reason = False, str(error)
    if not is_same:
        raise DiskError(
            f"{what} cannot be saved without pickle: {reason}. Numbers, text, lists and dicts of them can be, and a "
            "tensor that stands alone"
        )


def _plain(value: Any) -> Any:
    """NumPy's floats as Python's, which they come back as."""
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def same(one: Any, two: Any) -> bool:
    """Whether two trees of tensors and values are equal to the bit."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        same_kind = one.shape == two.shape and one.dtype == two.dtype
        return same_kind and torch.equal(bytes_of(one), bytes_of(two))
    if type(one) is not type(two):
        return False
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)  # nan equals itself


def bytes_of(tensor: Tensor) -> Tensor:
    """uint8 [bytes]: the tensor's numbers as they are in memory, row by row."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _unsaved(model: nn.Module) -> Tensors:
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    return {name: buffer for name, buffer in model.named_buffers() if id(buffer) not in saved}
