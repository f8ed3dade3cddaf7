"""The last steps of a microbatch, on the rank's device: floats, normalisation, mixing of samples.

Draws are keyed by (seed, step, microbatch), and a sample's partner is in its own microbatch, so nothing here depends on
the number of ranks.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.schema import Cutmix, Mixup, Normalize
from dist_train.errors import UserError
from dist_train.randomness import key


class DeviceTransform:
    """Images as the model wants them: float32, 0 to 1, normalised and, in training, mixed."""

    def __init__(self, items: Sequence[Any], device: torch.device, mix: "Mix | None" = None) -> None:
        """`items` is the config's `augment` list; without `mix`, as in evaluation, nothing is mixed."""
        self._mix = mix
        normalize = next((item for item in items if isinstance(item, Normalize)), None)
        self._scale: list[Tensor] = []
        if normalize is not None:
            pair = (normalize.mean, normalize.std)
            self._scale = [torch.tensor(v, dtype=torch.float32, device=device)[:, None, None] for v in pair]

    def __call__(self, inputs: Any, targets: Any, step: int, number: int) -> tuple[Any, Any]:
        """Inputs and targets, on the device already, of microbatch `number` of `step`.

        uint8 [m, C, H, W] becomes float32 in [0, 1]; other inputs stay as the data set gives them. After mixing,
        targets are float32 [m, classes].
        """
        fresh = is_bytes(inputs)
        if fresh:
            inputs = inputs.to(torch.float32).div_(255)
        if self._scale:
            inputs = _normalized(inputs, self._scale[0], self._scale[1], in_place=fresh)
        return (inputs, targets) if self._mix is None else self._mix(inputs, targets, step, number)


def is_bytes(inputs: Any) -> bool:
    """Whether these are images that become floats, in memory of their own."""
    return isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4


class Mix:
    """Mixup or cutmix. Each microbatch gets one of the configured ones, all of them equally likely.

    Partners are found by a keyed rotation of the microbatch: it needs no copy of an index to the device, and pairs no
    sample with itself.
    """

    def __init__(self, mixers: Sequence[Mixup | Cutmix], seed: int, num_classes: int) -> None:
        self._mixers, self._seed, self._classes = mixers, seed, num_classes

    @classmethod
    def from_config(cls, items: Sequence[Any], seed: int, num_classes: int | None) -> "Mix | None":
        """None where the config's `augment` list mixes nothing.

        Raises:
            UserError: when it does, and the number of classes is not known.
        """
        mixers = [item for item in items if isinstance(item, Mixup | Cutmix)]
        if mixers and num_classes is None:
            raise UserError(f"augment: {mixers[0].name} needs the number of classes, and the data set does not tell it")
        return cls(mixers, seed, num_classes) if mixers and num_classes is not None else None

    def __call__(self, inputs: Tensor, targets: Tensor, step: int, number: int) -> tuple[Tensor, Tensor]:
        """float [m, C, H, W] and int64 [m] to the same and float32 [m, classes]."""
        _check_mixable(inputs, targets, self._mixers[0].name)
        draw = np.random.default_rng(key(self._seed, "mix", step, number))
        mixer = self._mixers[int(draw.integers(len(self._mixers)))]
        weight = float(draw.beta(mixer.alpha, mixer.alpha))
        shift = int(draw.integers(1, max(2, len(inputs))))
        partners = inputs.roll(shift, 0)
        if isinstance(mixer, Mixup):
            inputs = inputs * weight + partners * (1 - weight)
        else:
            inputs, weight = cutmix(inputs, partners, weight, draw)
        # torch's one_hot has the host look at the targets, on some devices.
        soft = (targets[:, None] == torch.arange(self._classes, device=targets.device)).to(torch.float32)
        return inputs, soft * weight + soft.roll(shift, 0) * (1 - weight)


def cutmix(inputs: Tensor, partners: Tensor, weight: float, draw: np.random.Generator) -> tuple[Tensor, float]:
    """Pastes in a rectangle of the partners, and returns the share of the area that is left as well (Yun et al., 2019,
    section 3.1)."""
    height, width = inputs.shape[-2:]
    side = math.sqrt(1 - weight)
    half_rows, half_columns = int(height * side / 2), int(width * side / 2)
    row, column = int(draw.integers(height)), int(draw.integers(width))
    top, bottom = max(row - half_rows, 0), min(row + half_rows, height)
    left, right = max(column - half_columns, 0), min(column + half_columns, width)
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _normalized(inputs: Tensor, mean: Tensor, std: Tensor, in_place: bool) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
        raise UserError("augment: normalize works on images [channels, height, width], uint8 or float")
    if inputs.shape[1] != len(mean):
        raise UserError(f"augment: normalize has {len(mean)} means, and the images have {inputs.shape[1]} channels")
    return (inputs.sub_(mean) if in_place else inputs - mean).div_(std)


def _check_mixable(inputs: Any, targets: Any, name: str) -> None:
    images = isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point()
    classes = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    if not images or not classes:
        raise UserError(f"augment: {name} works on images with one class each")
