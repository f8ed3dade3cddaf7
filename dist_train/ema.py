"""An exponential moving average of the weights, evaluated in place of them (Polyak and Juditsky, 1992)."""

import copy

import torch
from torch import Tensor, nn

_COUNT = "n_averaged"


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
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the model's weights after a step; `model` is the one given to the constructor, or its equal."""
        mine, theirs = _tensors(self.module), _tensors(model)
        pairs = list(zip(mine, theirs, strict=True))
        averaged = [(a, b) for a, b in pairs if a.is_floating_point() and self.updates]
        copied = [(a, b) for a, b in pairs if not (a.is_floating_point() and self.updates)]
        if averaged:
            torch._foreach_lerp_([a for a, _ in averaged], [b for _, b in averaged], 1 - self._decay)
        for average, tensor in copied:
            average.copy_(tensor)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """All that a restart needs, by name: the averages themselves, not copies, and `n_averaged`, int64 []."""
        return {**self.module.state_dict(), _COUNT: torch.tensor(self.updates)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state` gave, to the bit.

        Raises:
            RuntimeError: when names or shapes are not the model's.
        """
        weights = dict(state)
        self.updates = int(weights.pop(_COUNT))
        self.module.load_state_dict(weights)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
