"""An exponential moving average of the weights, evaluated in place of them (Polyak and Juditsky, 1992)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.checkpoint.model_state import Tensors, load_model, tensors_of
from dist_train.checkpoint.state import AVERAGED
from dist_train.errors import UserError


class Ema:
    """average = decay · average + (1 - decay) · weights, after every step; the first one copies, as in AveragedModel.

    Floating-point buffers are averaged like the weights they belong to: BatchNorm's statistics of the last step would
    describe other weights than the averaged ones. Integer buffers, which count, are copied. AveragedModel itself rounds
    averages of integers, and waits for the GPU at every step.

    Attributes:
        module: a model with the averaged weights, in evaluation mode.
        updates: how many steps went into it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = _copied(model).requires_grad_(False).eval()
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the model's weights after a step; `model` is the one given to the constructor, or its equal."""
        mine, theirs = _tensors(self.module), _tensors(model)
        pairs = list(zip(mine, theirs, strict=True))
        averaged = [(a, b) for a, b in pairs if a.is_floating_point() and self.updates]
        copied = [(a, b) for a, b in pairs if not (a.is_floating_point() and self.updates)]
        if averaged:
            torch._foreach_lerp_([a for a, _ in averaged], [b for _, b in averaged], 1 - self._decay)
        for average, tensor in copied:
            average.copy_(tensor)
        for own, other in zip(self.module.modules(), model.modules(), strict=True):
            if type(other).get_extra_state is not nn.Module.get_extra_state:
                own.set_extra_state(copy.deepcopy(other.get_extra_state()))
        self.updates += 1

    def state(self, constants: Tensors) -> Tensors:
        """Everything that a restart needs, by name: the averages themselves, not copies, and their number.

        Args:
            constants: as tensors_of takes them.
        """
        return {**tensors_of(self.module, constants), AVERAGED: torch.tensor(self.updates)}

    def load(self, state: Tensors, others: dict[str, Any] | None) -> None:
        """Loads what `state` returned, to the bit; `others` as load_model takes them.

        Raises:
            RuntimeError: when names or shapes are not the model's.
        """
        weights = dict(state)
        self.updates = int(weights.pop(AVERAGED))
        load_model(self.module, weights, others)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"train.ema_decay needs a copy of the model, and {type(model).__name__} cannot be copied "
            f"({str(error).split('.')[0]}): leave ema_decay out, or keep no tensors of a forward as attributes (the "
            "older torch.nn.utils.weight_norm does; torch.nn.utils.parametrizations has one that does not)"
        ) from None


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
