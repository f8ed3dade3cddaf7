"""Crops and flips of a batch, folded into one copy out of the memory that the images lie in."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What is cut from each of m images, of their own size: int64 [m] `top` and `left`, where pixels outside of the
    image are 0, and bool [m] `mirrored`, from left to right, inside of its window."""

    top: np.ndarray
    left: np.ndarray
    mirrored: np.ndarray

    @classmethod
    def whole(cls, count: int) -> "Windows":
        zeros = np.zeros(count, dtype=np.int64)
        return cls(top=zeros, left=zeros, mirrored=np.zeros(count, dtype=bool))

    def moved(self, down: np.ndarray, right: np.ndarray) -> "Windows":
        """Then a window of the result, so far down and to the right."""
        left = self.left + np.where(self.mirrored, -right, right)
        return Windows(top=self.top + down, left=left, mirrored=self.mirrored)

    def flipped(self, chosen: np.ndarray) -> "Windows":
        """Then those that are `chosen`, bool [m], are mirrored."""
        return Windows(top=self.top, left=self.left, mirrored=self.mirrored ^ chosen)


def cut(images: Tensor, rows: np.ndarray | None, windows: Windows | None) -> Tensor:
    """[m, C, H, W] of [N, C, H, W], on the device and of the dtype that they have.

    Args:
        rows: which images, int64 [m]; None: all of them.
        windows: None: whole.
    """
    if windows is None:
        return images if rows is None else images.index_select(0, sent(rows, images.device))
    rows = np.arange(len(images)) if rows is None else rows
    return cut_each(images, rows, windows) if images.device.type == "cpu" else cut_together(images, rows, windows)


def cut_each(images: Tensor, rows: np.ndarray, windows: Windows) -> Tensor:
    """One by one, since NumPy copies a window row by row: for a CPU, where an index for each pixel takes 10 times as
    long."""
    height, width = images.shape[-2:]
    out = torch.zeros(len(rows), *images.shape[1:], dtype=images.dtype)
    source, into = _pixels(images), _pixels(out)
    places = zip(rows.tolist(), windows.top.tolist(), windows.left.tolist(), windows.mirrored.tolist(), strict=True)
    for place, (row, down, right, mirrored) in enumerate(places):
        top, bottom = max(0, -down), min(height, height - down)
        left, right_ = max(0, -right), min(width, width - right)
        if top < bottom and left < right_:
            window = source[row, :, top + down : bottom + down, left + right : right_ + right]
            if mirrored:
                into[place, :, top:bottom, width - right_ : width - left] = window[..., ::-1]
            else:
                into[place, :, top:bottom, left:right_] = window
    return out


def _pixels(images: Tensor) -> np.ndarray:
    """NumPy knows no bfloat16; what is copied is the same."""
    return (images.view(torch.int16) if images.dtype == torch.bfloat16 else images).numpy()


def cut_together(images: Tensor, rows: np.ndarray, windows: Windows) -> Tensor:
    """The same by an index for each row and column of pixels: for a GPU, which nothing here waits for."""
    channels, height, width = images.shape[1:]
    across = np.where(windows.mirrored[:, None], np.arange(width)[::-1], np.arange(width))
    columns, lines = windows.left[:, None] + across, windows.top[:, None] + np.arange(height)
    where = np.concatenate([rows[:, None], lines, columns], axis=1)
    row, line, column = sent(where, images.device).split([1, height, width], dim=1)
    inside = ((line >= 0) & (line < height))[:, None, :, None] & ((column >= 0) & (column < width))[:, None, None, :]
    line, column = line.clamp(0, height - 1)[:, None, :, None], column.clamp(0, width - 1)[:, None, None, :]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return images[row[:, :, None, None], channel, line, column] * inside


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array on the device, which the host does not wait for: it is copied out of page-locked memory, which
    torch keeps until that is done."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
