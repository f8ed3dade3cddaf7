"""Images that stay on the rank's device, as bytes: a microbatch is made there, from a vector of places.

Those of files are decoded before the first step, by all ranks of a node, through the cache on disk. On a CPU its map is
where they stay, in pages that all ranks share; to a GPU they are copied.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_train.config.schema import ImageCache, RunConfig
from dist_train.config.types import in_bytes
from dist_train.control.stop import StopFlag
from dist_train.data.augment import Augment
from dist_train.data.cache.survey import fill, parts
from dist_train.data.datasets.base import Crop, ImageSet, Splits, TensorImages
from dist_train.data.datasets.decoded import DecodedImages, Named
from dist_train.errors import ExitCode, UserError
from dist_train.heartbeat import beat
from dist_train.memory import scarcest
from dist_train.parallel.process_group import ProcessGroup

_AT_ONCE = 256
"""Images that are read together."""


class ResidentImages(TensorImages):
    """Images on a device, uint8 [N, C, H, W]; their targets stay on the host, where they are checked."""

    is_resident = True


class ResidentFiles(ResidentImages, Named):
    """Images of files on a device. A file that could not be read is read again whenever its sample is asked for, and
    then fails, or is left out, as it does without.

    Args:
        files: the data set that they come from.
        lacks: bool [N], of which the image is not there.
    """

    def __init__(self, images: Tensor, targets: Tensor, files: DecodedImages, lacks: np.ndarray) -> None:
        super().__init__(images, targets)
        self._files, self._lacks = files, lacks

    def in_place(self, indices: np.ndarray) -> tuple[Tensor, np.ndarray] | None:
        return None if self._lacks[indices].any() else (self.images, indices)

    def __getitems__(self, indices: np.ndarray, crop: Crop | None = None) -> tuple[Tensor, Tensor]:
        return self._files.__getitems__(indices, crop)

    def path(self, index: int) -> str:
        return self._files.path(index)


def on_the_device(
    config: RunConfig, splits: Splits, group: ProcessGroup, flag: StopFlag, tell: Callable[[str], None]
) -> Splits:
    """What `resident_splits` gives, with the images of files decoded before; all ranks call it together.

    Raises:
        UserError: as both do.
    """
    _check_augment(config, group.device)
    _fill_share(splits, group, flag, tell)
    # A GPU would read all of them for one step more.
    return splits if flag.request.stops else resident_splits(config, splits, group.device, group.ranks.local_world_size)


def _fill_share(splits: Splits, group: ProcessGroup, flag: StopFlag, tell: Callable[[str], None]) -> None:
    """Decodes, together with the other ranks of its node, what is missing of the files' images that stay in memory;
    returns when all have done so.

    Args:
        flag: once it asks to stop, the rest is left to be decoded when it is needed.
        tell: is told how far it is, in a few words.

    Raises:
        UserError: (exit 12) when they do not fit into memory, or are more than data.cache.limit.
    """
    held = [part for part in parts(splits) if part.kept.config.device]
    count, need = sum(map(len, held)), sum(len(part) * part.kept.form.usual for part in held)
    for part in held:
        if (limit := part.kept.config.limit) is not None and need > in_bytes(limit):
            _refuse(count, "", need, f"data.cache.limit is {_size(in_bytes(limit))}", "data.cache=disk")
    if not held:
        return
    if group.device.type != "cpu":  # where squares lie side by side
        need = sum(len(images) * int(np.prod(images.shape)) for part in held for images in part.sets.values())
    _check_fits(count, "", need, group.device, "data.cache=disk")
    done, share = 0, (group.ranks.local_rank, group.ranks.local_world_size)
    for part in held:
        for number in fill(part, lambda line: None, share):
            done += number * share[1]
            beat("init")
            tell(f"decoding {min(100, 100 * done // count)} %")
            if flag.request.stops:
                break
    group.barrier()


def resident(images: ImageSet, device: torch.device, ranks_here: int = 1) -> ResidentImages:
    """The same samples, read once, with the images on `device`. On a CPU a set that is in memory is not copied.

    Args:
        images: any set of one shape whose samples do not depend on what is read beside them.
        ranks_here: of this machine, which share its cores.

    Raises:
        UserError: (exit 12) when they do not fit.
    """
    if isinstance(images, TensorImages) and images.images.device == device:
        return ResidentImages(images.images, images.targets)
    _check_fits(len(images), f" of {list(images.shape)}", len(images) * int(np.prod(images.shape)), device, None)
    store = torch.empty(len(images), *images.shape, dtype=torch.uint8, device=device)
    lacks = np.zeros(len(images), dtype=bool)

    def read(indices: np.ndarray) -> Tensor:
        try:
            part, targets = images.__getitems__(indices)
        except UserError:
            if not isinstance(images, DecodedImages):
                raise
            if len(indices) > 1:
                return torch.cat([*map(read, indices[:, None])])
            lacks[indices] = True
            return torch.zeros(1, dtype=torch.int64)
        store[indices[0] : indices[-1] + 1] = part
        beat("init")
        return targets

    places = np.arange(len(images))
    blocks = [places[begin : begin + _AT_ONCE] for begin in range(0, len(images), _AT_ONCE)]
    threads = len(os.sched_getaffinity(0)) // ranks_here if images.threads else 1
    with ThreadPoolExecutor(max(1, threads)) as pool:
        targets = torch.cat([*pool.map(read, blocks)])
    if isinstance(images, DecodedImages):
        return ResidentFiles(store, targets, images, lacks)
    return ResidentImages(store, targets)


def resident_splits(config: RunConfig, splits: Splits, device: torch.device, ranks_here: int = 1) -> Splits:
    """Those splits on the device of which the config says so.

    Raises:
        UserError: when they do not fit, or an augmentation would have other bits there.
    """
    _check_augment(config, device)
    names = ["train"] * _stays(config.data) + ["evaluation", "test"] * _stays(config.evaluated_data)
    sets: dict[str, Any] = {name: getattr(splits, name) for name in names if getattr(splits, name) is not None}
    for name, images in sets.items():
        if device.type != "cpu" or not isinstance(images, DecodedImages):
            sets[name] = resident(images, device, ranks_here)
    return replace(splits, **sets)


def _check_augment(config: RunConfig, device: torch.device) -> None:
    """Raises UserError where an augmentation would have other bits on the device."""
    step = Augment(config.augment, config.seed).on_host
    if step and device.type != "cpu" and _stays(config.data):
        raise UserError(
            f"augment: {step} has other bits on {device.type} than on a CPU, where it is computed: leave it out, or "
            "data.cache=device"
        )


def _stays(data: Any) -> bool:
    cache = getattr(data, "cache", None)
    return cache == "device" or (isinstance(cache, ImageCache) and cache.device)


def _check_fits(count: int, what: str, need: int, device: torch.device, instead: str | None) -> None:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else scarcest().left
    if need > free:
        _refuse(count, what, need, f"{device.type} has {_size(free)} free", instead)


def _refuse(count: int, what: str, need: int, room: str, instead: str | None) -> None:
    raise UserError(
        f"data.cache=device: {count:,} images{what} take {_size(need)}, and {room}: "
        f"{f'set {instead}' if instead else 'leave data.cache out'}, or use fewer or smaller images",
        ExitCode.OUT_OF_MEMORY,
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e6:,.2f} MB"
