"""Images that stay on the rank's device, as bytes: a microbatch is made there, from a vector of places."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.config.schema import OnDevice, RunConfig
from dist_train.data.augment import Augment
from dist_train.data.datasets.base import ImageSet, Splits, TensorImages
from dist_train.errors import ExitCode, UserError

_AT_ONCE = 1024
"""Images that are read together."""


class ResidentImages(TensorImages):
    """Images on a device, uint8 [N, C, H, W]; their targets stay on the host, where they are checked."""

    is_resident = True


def resident(images: ImageSet, device: torch.device) -> ResidentImages:
    """The same samples, read once, with the images on `device`. On a CPU a set that is in memory is not copied.

    Args:
        images: any set of one shape whose samples do not depend on what is read beside them (`by_row`).

    Raises:
        UserError: (exit 12) when they do not fit.
    """
    if isinstance(images, TensorImages) and images.images.device == device:
        return ResidentImages(images.images, images.targets)
    size = len(images) * int(np.prod(images.shape))
    if size > (free := _free(device)):
        raise UserError(
            f"data.cache=device: {len(images):,} images of {list(images.shape)} take {size / 1e9:,.2f} GB, and "
            f"{device.type} has {free / 1e9:,.2f} GB free: leave data.cache out, or use fewer or smaller images",
            ExitCode.OUT_OF_MEMORY,
        )
    store = torch.empty(len(images), *images.shape, dtype=torch.uint8, device=device)
    targets = []
    for begin in range(0, len(images), _AT_ONCE):
        part, of_part = images.__getitems__(np.arange(begin, min(begin + _AT_ONCE, len(images))))
        store[begin : begin + len(part)] = part
        targets.append(of_part)
    return ResidentImages(store, torch.cat(targets))


def resident_splits(config: RunConfig, splits: Splits, device: torch.device) -> Splits:
    """Those splits on the device of which the config says so.

    Raises:
        UserError: when they do not fit, or an augmentation would have other bits there.
    """
    both = (config.data, config.evaluated_data)
    trained, evaluated = (isinstance(data, OnDevice) and data.cache == "device" for data in both)
    if trained and device.type != "cpu" and (step := Augment(config.augment, config.seed).on_host):
        raise UserError(
            f"augment: {step} has other bits on {device.type} than on a CPU, where it is computed: leave it out, or "
            "data.cache=device"
        )
    names = ["train"] * trained + ["evaluation", "test"] * evaluated
    sets: dict[str, Any] = {name: getattr(splits, name) for name in names if getattr(splits, name) is not None}
    for name, images in sets.items():
        sets[name] = resident(images, device)
    return replace(splits, **sets)


def _free(device: torch.device) -> int:
    """Bytes of its memory that nobody has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(facts["MemAvailable"].split()[0])
