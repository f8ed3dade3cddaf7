"""What every peer's script does alike: a job's model, data, loss and optimizer, and telling how far it is."""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.models import CONTEXT, gpt
from benchmarks.peers.jobs import EVALUATED
from dist_train import models
from dist_train.config.schema import Cnn

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
WARM_UP, FINAL = 100, 0.1
"""Of the language model's learning rate: steps until its peak, and the share of the peak at the end."""


def arguments() -> argparse.Namespace:
    """Of every script: which data, what is done with it, and how the script loads it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="where it tells how far it is, saves, and goes on from")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="of a rank")
    parser.add_argument("--photos", type=int, default=0, help="random_resized_crop to so many pixels")
    parser.add_argument("--windows", type=int, default=0, help="a language model, with so many windows an epoch")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--contiguous", action="store_true", help="images and convolutions are not channels last")
    args = parser.parse_args()
    args.clip = 1.0 if args.windows else None
    _write(args, "began", rank=_rank(), pid=os.getpid())
    return args


def data(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Training and evaluation."""
    return _text(args) if args.windows else _images(args)


def _images(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """As torchvision's references load them: Pillow decodes each file each time."""
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    size = args.photos
    changes: list[Any] = [transforms.RandomResizedCrop(size)] if size else [transforms.RandomCrop(32, 4)]
    fitted: list[Any] = [transforms.Resize(size), transforms.CenterCrop(size)] if size else []
    return (
        ImageFolder(args.data / "train", transforms.Compose([*changes, transforms.RandomHorizontalFlip(), *end])),
        ImageFolder(args.data / "eval", transforms.Compose([*fitted, *end])),
    )


def _text(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Windows that begin anywhere, drawn as nanoGPT draws them; for evaluation, all of them, side by side."""
    train, held_out = (np.memmap(args.data / f"{name}.bin", dtype=np.uint16, mode="r") for name in ("train", "val"))
    drawn = np.random.default_rng(0).integers(len(train) - CONTEXT, size=args.windows)
    return Windows(train, drawn), Windows(held_out, np.arange(0, len(held_out) - CONTEXT, CONTEXT))


class Windows(Dataset):
    """A sample is CONTEXT tokens from a place on, and the same one token further on: int64 [m, T] each, of a whole
    batch at once, as torch's DataLoader asks for where it may."""

    def __init__(self, tokens: np.ndarray, begins: np.ndarray) -> None:
        self._tokens, self._begins = tokens, begins

    def __len__(self) -> int:
        return len(self._begins)

    def __getitems__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        wanted = self._begins[places][:, None] + np.arange(CONTEXT + 1)
        windows = torch.from_numpy(self._tokens[wanted].astype(np.int64))
        return windows[:, :-1], windows[:, 1:]


def loading(args: argparse.Namespace, *, evaluation: bool = False) -> dict[str, Any]:
    """Of a DataLoader."""
    size = EVALUATED if evaluation else args.batch
    collate = {"collate_fn": _as_it_is} if args.windows else {}
    return {"batch_size": size, "num_workers": args.workers, "persistent_workers": args.workers > 0, **collate}


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def model(args: argparse.Namespace) -> nn.Module:
    """dist-train's own, in the memory format that is asked for."""
    module = gpt() if args.windows else _cnn(args)
    tell(args, "built", numbers=sum(tensor.numel() for tensor in module.state_dict().values()))
    return module


def _cnn(args: argparse.Namespace) -> nn.Module:
    size, classes = args.photos or 32, sum(1 for _ in (args.data / "train").iterdir())
    config = Cnn(width=16, channels_last=not args.contiguous)
    return models.build(config, shape=(3, size, size), classes=classes, seed=0)


def autocast(args: argparse.Namespace) -> torch.autocast:
    """For what computes a model's scores and loss, where no library does it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy: [m, classes] and [m], or [m, T, tokens] and [m, T]."""
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten())


def optimizer(args: argparse.Namespace, module: nn.Module) -> torch.optim.Optimizer:
    """With torch's fused kernels; of the language model as nanoGPT has it, where norms don't decay."""
    if not args.windows:
        return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    matrices, others = ([p for p in module.parameters() if (p.dim() >= 2) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)


def schedule(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Stepped after each of `steps`: up and along a cosine for the language model, else constant."""

    def share(step: int) -> float:
        if not args.windows:
            return 1.0
        progress = max(0, step - WARM_UP) / max(1, steps - WARM_UP)
        return min((step + 1) / (WARM_UP + 1), FINAL + (1 - FINAL) * (1 + math.cos(math.pi * progress)) / 2)

    return LambdaLR(optimizer, share)


def tell(args: argparse.Namespace, event: str, **facts: Any) -> None:
    """One line in `events`, by rank 0."""
    if _rank() == 0:
        _write(args, event, **facts)


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _write(args: argparse.Namespace, event: str, **facts: Any) -> None:
    with open(args.out / "events", "a") as file:
        file.write(json.dumps({"event": event, "unix": time.time(), **facts}) + "\n")
