"""Names and small pictures of a few samples, for people. What goes wrong leaves a picture out."""

import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import process
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.problems import printable
from dist_train.data.datasets.decoded import DecodedImages, Named
from dist_train.data.failure import CapturedError
from dist_train.data.fetch import Fetch, sample_name
from dist_train.data.loaded import each_array
from dist_train.data.resize import resize
from dist_train.data.sampler import LoadRequest
from dist_train.data.workers import start_method, start_worker
from dist_train.report.palette import palette

SIDE = 96
"""Pixels of the longer side."""


class Look:
    """Gives a sample's name and JPEG file, which is empty where it has no image.

    Args:
        pictures: False for the names alone.
    """

    def __init__(self, dataset: Any, seed: int, *, pictures: bool) -> None:
        self._dataset, self._pictures = dataset, pictures
        self._fetch = Fetch(dataset, seed, None, 0.0, "stop")

    def prepare(self) -> None:
        """What a forked process needs, as Fetch.prepare."""
        from PIL import Image

        self._fetch.prepare()
        Image.init()

    def __call__(self, index: int) -> tuple[str, bytes]:
        name, picture = plain_name(index), b""
        with suppress(Exception):
            name = printable(sample_name(self._dataset, index), 300)
        with suppress(Exception):
            picture = jpeg_of(self._input(index)) if self._pictures else b""
        return name, picture

    def _input(self, index: int) -> Any:
        """As it is stored, where that is an image, and not as the model sees it."""
        if isinstance(self._dataset, DecodedImages):
            return self._dataset.read(index)[0]
        found = self._fetch.__getitems__(LoadRequest(step=0, number=0, parts=1, epoch=0, indices=np.array([index])))
        return None if isinstance(found, CapturedError) else each_array(lambda array: array[0], found.inputs)


def plain_name(index: int) -> str:
    return f"sample {index:,}"


def looked_at(
    look: Look, dataset: Any, indices: Sequence[int], device: torch.device, workers: int, seconds: float
) -> Iterator[tuple[int, str, bytes]]:
    """Number, name and picture of each of the samples that could be looked at in this time.

    Where reading can block, a process of its own does it, which is killed when the time is over. A user's own data set
    that this rank reads by itself, without loading processes, is read here: its open files may not be shared.
    """
    if not indices:
        return
    look.prepare()  # once in a process, and no matter of the data
    ends = time.monotonic() + seconds
    if getattr(dataset, "in_memory", False) or not (workers or isinstance(dataset, Named)):
        yield from ((index, *look(index)) for index in indices if time.monotonic() < ends)
        return
    how = multiprocessing.get_context(start_method(device))
    ours, theirs = how.Pipe(duplex=False)
    reader = how.Process(target=_serve, args=(theirs, look, list(indices)), daemon=True)  # type: ignore[attr-defined]
    reader.start()
    theirs.close()
    try:
        for index in indices:
            if not ours.poll(max(0.0, ends - time.monotonic())):
                return
            name, _, picture = ours.recv_bytes().partition(b"\0")
            yield index, name.decode(), picture
    except (EOFError, OSError):  # it has died
        return
    finally:
        ours.close()
        reader.kill()
        reader.join(0.1)
        if reader.is_alive():  # it waits for storage, and nobody waits for it
            process._children.discard(reader)  # type: ignore[attr-defined]


def _serve(answers: Connection, look: Callable[[int], tuple[str, bytes]], indices: Sequence[int]) -> None:
    start_worker(0)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1), os.dup2(silence, 2)
    for index in indices:
        name, picture = look(index)
        answers.send_bytes(name.encode() + b"\0" + picture)


# ---------------------------------------------------------------- files


def jpeg_of(value: Any) -> bytes:
    """A JPEG file of the first image in an input: an array [1, 3 or 4, height, width], or uint8 [height, width]. Floats
    are taken to be from 0 to 1 where they are, and else from their lowest to their highest. Without one it is empty."""
    found: list[Tensor] = []
    each_array(lambda array: found.append(torch.as_tensor(array)), value)
    image = next((one for one in found if _is_image(one)), None)
    if image is None:
        return b""
    pixels = _fitted(_in_bytes(image if image.ndim == 3 else image[None])[:3])
    return _file(pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0), "JPEG")


def png_of(mask: np.ndarray) -> bytes:
    """An indexed PNG file of a mask, int [96, 96]: the class of each pixel, -1 for none, and -2 beside the mask."""
    inside = mask > -2
    mask = mask[: inside[:, 0].sum(), : inside[0].sum()]
    return _file(_enlarged(torch.from_numpy(np.where(mask < 0, 255, mask % 255).astype(np.uint8))), "PNG")


def _file(pixels: Tensor, kind: str) -> bytes:
    from PIL import Image

    content, image = io.BytesIO(), Image.fromarray(pixels.contiguous().numpy())
    if kind == "PNG":
        image.putpalette(palette())
    image.save(content, kind, quality=85)
    return content.getvalue()


def _is_image(array: Tensor) -> bool:
    is_grey = array.ndim == 2 and array.dtype == torch.uint8
    return (is_grey or (array.ndim == 3 and array.shape[0] in (1, 3, 4))) and min(array.shape[-2:]) > 1


def _in_bytes(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    image = image.float().nan_to_num()
    low, high = image.min(), image.max()
    if low < 0 or high > 1:
        image = (image - low) / (high - low)
    return image.mul(255).round().to(torch.uint8)


def _fitted(image: Tensor) -> Tensor:
    """uint8 [C, h, w] to one whose longer side has at most 96 pixels, and more than half of it."""
    height, width = image.shape[1:]
    longest = max(height, width)
    if longest > SIDE:
        return resize(image, max(1, height * SIDE // longest), max(1, width * SIDE // longest))
    return _enlarged(image)


def _enlarged(pixels: Tensor) -> Tensor:
    times = SIDE // max(pixels.shape[-2:])
    return pixels.repeat_interleave(times, -1).repeat_interleave(times, -2)
