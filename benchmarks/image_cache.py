"""Images a second with data.cache and without, on one core: filling it, and reading from it, with a crop and without.

    python -m benchmarks.image_cache FOLDER [--size 64] [--side 128] [--count 600] [--rounds 5]

FOLDER has images, in a folder for each class; where there is none, JPEG files of 370 × 272 pixels are made in it. Each
round reads a part of them both ways, one after the other, in an order that alternates.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dist_train.config.schema import ImageFolder, RandomResizedCrop
from dist_train.data import datasets
from dist_train.data.augment import resized_crop
from dist_train.data.decode import load_decoders

BATCH = 32


def make(folder: Path, count: int) -> None:
    """Smooth noise, which JPEG takes about as many bytes for as for a photo: 60 kB."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (68, 93, 3), dtype=np.uint8)).resize((370, 272))
        fine = np.asarray(coarse, dtype=np.int16) + draw.integers(-14, 15, (272, 370, 3))
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def rate(dataset: Any, crops: bool, count: int) -> float:
    """Images a second."""
    begun = time.perf_counter()
    for first in range(0, count, BATCH):
        rows = np.arange(first, min(first + BATCH, count))
        dataset.__getitems__(rows, resized_crop(RandomResizedCrop(), 0, first, rows) if crops else None)
    return count / (time.perf_counter() - begun)


def compare(build: Callable[[Any], Any], cache: dict[str, Any], crops: bool, count: int, rounds: int) -> None:
    plain, ratios = build(None), {"filled": [], "first read": [], "read": []}
    rates: dict[str, list[float]] = {"without": []}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            kept, own = [build({"folder": folder, **cache}) for _ in range(2)], {}
            for name in ("without", *ratios) if number % 2 else (*ratios, "without"):
                dataset = plain if name == "without" else kept[name != "filled"]
                own[name] = rate(dataset, crops, count)
            for name, values in ratios.items():
                values.append(own[name] / own["without"])
            for name, value in own.items():
                rates.setdefault(name, []).append(value)
    print("with random_resized_crop" if crops else "without a crop")
    for name, values in rates.items():
        more = f"  {statistics.median(ratios[name]):.2f} of without" if name in ratios else ""
        print(f"  {name:<12}{statistics.median(values):9,.0f} images/s{more}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("size", 64), ("side", 128), ("count", 600), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    load_decoders()
    if not given.folder.is_dir():
        make(given.folder, given.count * 5 // 4)

    def build(cache: Any) -> Any:
        config = ImageFolder(root=str(given.folder), eval_fraction=0.1, image_size=given.size, cache=cache)
        return datasets.build(config).train

    count = min(given.count, len(build(None)))
    compare(build, {}, False, count, given.rounds)
    compare(build, {"side": given.side}, True, count, given.rounds)


if __name__ == "__main__":
    main()
