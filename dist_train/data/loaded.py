"""What comes of a request for samples, and how it travels to the rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.data.broken import Broken
from dist_train.data.sampler import LoadRequest
from dist_train.errors import UserCodeError

_SMALL = 1 << 20
"""Bytes of the largest array that goes through the pipe. That is less work than to pass the file descriptor of shared
memory, which takes half a millisecond on each side."""
_ALIGNED = 64
"""Bytes. What torch's allocator returns on a CPU begins at a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The answer to a request, images still uint8, and where the data set has them: on the CPU, or the device.

    Attributes:
        request: with the places of the samples that were really read. Where there are none, inputs and targets are
            None.
        broken: those that were asked for and could not be read, in their order.
        seconds: that it took to wait for storage, to compute the samples, and to augment them.
    """

    request: LoadRequest
    inputs: Any
    targets: Any
    broken: tuple[Broken, ...] = ()
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def plain(self) -> "Loaded":
        """Plain numbers: without an autograd graph, which cannot leave the process, and without lazy views."""
        return self._each(lambda array: torch.as_tensor(array).detach().resolve_conj().resolve_neg())

    def packed(self) -> "Loaded":
        """Ready to leave a loading process: small tensors as arrays, large ones already in shared memory.

        The queue's own thread would move the large ones, but an error there would be lost, and the rank would wait
        forever.
        """
        packed = self._each(_packed)
        _check_travels((packed.inputs, packed.targets))
        return packed

    def unpacked(self) -> "Loaded":
        return self._each(_settled)

    def pin_memory(self) -> "Loaded":
        """The DataLoader calls this, in a thread, on the way to a GPU."""
        return self._each(_pinned)

    def _each(self, function: Callable[[Any], Any]) -> "Loaded":
        return replace(self, inputs=each_array(function, self.inputs), targets=each_array(function, self.targets))


def _packed(tensor: Tensor) -> Tensor | np.ndarray:
    if tensor.nbytes > _SMALL:
        return tensor.share_memory_()
    try:
        return tensor.numpy()
    except TypeError:  # NumPy knows no bfloat16, and nothing smaller
        return tensor


def _pinned(array: Tensor | np.ndarray) -> Tensor:
    tensor = torch.as_tensor(array)
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def _settled(array: Tensor | np.ndarray) -> Tensor:
    """The array as a contiguous tensor, in memory that is aligned as torch aligns it.

    The place of numbers in memory may decide which kernel runs and in which order it adds, and so the last bit. It must
    not depend on how the numbers got here.
    """
    tensor = torch.as_tensor(array)
    # `is_contiguous` allows any stride where a size is 1, and kernels look at those too.
    strides = torch.empty(tensor.shape, device="meta").stride()
    if tensor.stride() == strides and tensor.data_ptr() % _ALIGNED == 0:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _check_travels(value: Any) -> None:
    """Raises UserError if a part of a sample cannot be sent: an object whose class another process cannot find would be
    lost silently."""
    try:
        ForkingPickler.dumps(each_array(lambda _: None, value))
    except Exception as error:
        raise UserCodeError(
            f"a sample holds what cannot be handed over by a loading process ({error}): define its class at the top of "
            "a module, or set loader.workers=0"
        ) from error


def each_array(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with every tensor and array in its dicts, lists and tuples replaced by `function` of it."""
    if isinstance(value, Tensor | np.ndarray):
        return function(value)
    if isinstance(value, Mapping):
        return {name: each_array(function, item) for name, item in value.items()}
    if hasattr(value, "_fields"):
        return type(value)(*(each_array(function, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(each_array(function, item) for item in value)
    return value
