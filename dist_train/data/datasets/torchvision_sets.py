"""CIFAR and MNIST from torchvision: downloaded once a node, then held in memory as one uint8 tensor."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dist_train.config.schema import Cifar10, Cifar100, FashionMnist, Mnist
from dist_train.data.datasets.base import Splits, TensorImages, held_out
from dist_train.errors import DataError


class _Source(NamedTuple):
    class_name: str
    folder: str
    """Under root, where torchvision looks for the files."""
    files: tuple[str, ...]
    """As they are served; torchvision unpacks them."""


_IDX = tuple(f"{part}-{kind}.gz" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
_SOURCES = {
    "cifar10": _Source("CIFAR10", ".", ("cifar-10-python.tar.gz",)),
    "cifar100": _Source("CIFAR100", ".", ("cifar-100-python.tar.gz",)),
    "mnist": _Source("MNIST", "MNIST/raw", _IDX),
    "fashion_mnist": _Source("FashionMNIST", "FashionMNIST/raw", _IDX),
}


def build(
    config: Cifar10 | Cifar100 | Mnist | FashionMnist, local_rank0_first: Callable[[], AbstractContextManager[None]]
) -> Splits:
    import torchvision.datasets

    source = _SOURCES[config.name]
    thing = getattr(torchvision.datasets, source.class_name)
    with local_rank0_first(), _explained(config.name, config.root, config.download):
        thing(config.root, train=True, download=config.download)
    official_train, official_test = thing(config.root, train=True), thing(config.root, train=False)
    images, targets = _tensors(official_train)
    test = TensorImages(*_tensors(official_test))
    classes = tuple(str(name) for name in official_train.classes)
    if config.eval_fraction is None:
        train = TensorImages(images, targets)
        return Splits(train=train, evaluation=test, classes=classes, shape=train.shape)
    parts = held_out(config, classes, targets)
    train, evaluation = (TensorImages(images[rows], targets[rows]) for rows in (parts.kept, parts.held))
    return Splits(train=train, evaluation=evaluation, test=test, classes=classes, shape=train.shape, notes=parts.notes)


def _tensors(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """torchvision's [N, H, W, 3] array or [N, H, W] tensor as uint8 [N, C, H, W], and targets int64 [N]."""
    pixels = torch.as_tensor(np.asarray(dataset.data))
    images = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]
    return images.contiguous(), torch.as_tensor(dataset.targets, dtype=torch.int64)


@contextmanager
def _explained(name: str, root: str, download: bool) -> Iterator[None]:
    """Turns torchvision's errors into one line that names the files to provide, and their place."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30.0)  # torchvision sets none: a network that swallows packets would hang the run
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(_advice(name, root, download, error)) from error
    finally:
        socket.setdefaulttimeout(before)


def _advice(name: str, root: str, download: bool, error: Exception) -> str:
    source, place = _SOURCES[name], Path(root).absolute()
    files = f"put {', '.join(source.files)} into {(place / source.folder)}"
    if not download:
        return f"{name} is not in {place} and data.download is false: set it to true, which also unpacks, or {files}"
    reason = str(error).strip().split("\n")[0]
    return f"{name} is not in {place} and could not be downloaded ({reason}): {files}"
