"""Where gradients lie in the memory of a bucket of DDP."""

from collections.abc import Sequence

import torch
from torch import Tensor


def in_bucket(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Each parameter's gradient in the memory of a bucket of DDP. It lies there in its parameter's memory format,
    unless that has gaps or overlaps. (GradBucket.gradients() takes all for contiguous.)

    Args:
        flat: [n], the bucket, or memory like it.
        parameters: the bucket's, in its order.
    """
    if parameters[0].is_complex() and not flat.is_complex():  # a bucket has one dtype, and a hook gets pairs of reals
        flat = torch.view_as_complex(flat.view(-1, 2))
    parts = flat.split([parameter.numel() for parameter in parameters])
    return [
        part.as_strided(parameter.shape, parameter.stride())
        if torch.ops.aten.is_non_overlapping_and_dense(parameter)
        else part.view(parameter.shape)
        for part, parameter in zip(parts, parameters, strict=True)
    ]


def realigned(gradient: Tensor) -> Tensor:
    """The gradient at an address that is a multiple of 64 bytes; a copy if need be. Where in a bucket of DDP a gradient
    lies depends on whether the process has made a step before. From another address some sums are added in another
    order: CUDA's norm takes four numbers at a time (aten/src/ATen/native/cuda/ForeachReduceOp.cu), BLAS a cache
    line."""
    return gradient if gradient.data_ptr() % 64 == 0 else gradient.clone()
