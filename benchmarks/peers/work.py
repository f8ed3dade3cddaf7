"""What every peer's script does alike: the model, the images, the transforms, and telling when its epochs ended."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dist_train import models
from dist_train.config.schema import Cnn

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def arguments() -> argparse.Namespace:
    """Of every script: where the images are, what is done to them, and how the script loads them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="where it tells of its epochs, and saves")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="of a rank")
    parser.add_argument("--photos", type=int, default=0, help="random_resized_crop to so many pixels")
    parser.add_argument("--workers", type=int, default=0)
    return parser.parse_args()


def images(args: argparse.Namespace) -> tuple[ImageFolder, ImageFolder]:
    """Training and evaluation, as torchvision's references load them: Pillow decodes each file each time."""
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    size = args.photos
    changes: list[Any] = [transforms.RandomResizedCrop(size)] if size else [transforms.RandomCrop(32, 4)]
    fitted: list[Any] = [transforms.Resize(size), transforms.CenterCrop(size)] if size else []
    return (
        ImageFolder(args.data / "train", transforms.Compose([*changes, transforms.RandomHorizontalFlip(), *end])),
        ImageFolder(args.data / "eval", transforms.Compose([*fitted, *end])),
    )


def model(args: argparse.Namespace) -> nn.Module:
    """dist-train's own cnn, in the same memory layout."""
    size = args.photos or 32
    return models.build(Cnn(width=16), shape=(3, size, size), classes=10, seed=0)


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def tell(args: argparse.Namespace, event: str, **facts: Any) -> None:
    """One line in `events`, by rank 0."""
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
        with open(args.out / "events", "a") as file:
            file.write(json.dumps({"event": event, "unix": time.time(), **facts}) + "\n")
