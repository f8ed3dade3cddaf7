"""Images a second with data.cache and without, on one core: filling it, and reading from it, with a crop and without.

    python -m benchmarks.image_cache FOLDER [--size 64] [--side 128] [--count 600] [--rounds 5]
    python -m benchmarks.image_cache FOLDER --warm [--tree CHECKOUT]

FOLDER has images, in a folder for each class; where there is none, JPEG files of 370 × 272 pixels are made in it. Each
round reads a part of them both ways, one after the other, in an order that alternates. `--warm` says what a filled
cache costs a core, in microseconds an image: its first read in a process, later ones, and those of a training and an
evaluation, beside NumPy's bare gather and images in memory; with `--tree`, in turn with another checkout's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.surroundings import environment
from dist_train.config.schema import HorizontalFlip, ImageFolder, RandomCrop, RandomResizedCrop
from dist_train.data import datasets
from dist_train.data.augment import Augment, resized_crop
from dist_train.data.datasets.base import TensorImages
from dist_train.data.decode import load_decoders
from dist_train.data.fetch import Fetch
from dist_train.data.sampler import LoadRequest

BATCH = 32
OFTEN = 30
"""Passes over all images, of which the fastest tenth counts: what a core can do when it is let."""


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


def warm(build: Callable[[Any], Any], count: int) -> dict[str, float]:
    """Microseconds of processor time an image, of batches of 64 in an order that was drawn."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = build({"folder": folder})
        every = np.random.default_rng(0).permutation(len(dataset))[: count // 64 * 64].reshape(-1, 64)
        read = [build({"folder": folder}).__getitems__(np.arange(len(dataset)))[0] for _ in range(2)][-1]
        memory, out = (
            TensorImages(read, torch.zeros(len(read), dtype=torch.int64)),
            np.empty((64, *read.shape[1:]), "u1"),
        )
        augment = Augment([RandomCrop(padding=4), HorizontalFlip()], 0)

        def fetched(data: Any, augment: Any) -> Callable[[np.ndarray], Any]:
            fetch = Fetch(data, 0, augment, 1.0, "stop")
            return lambda rows: fetch.__getitems__(LoadRequest(step=0, number=0, parts=1, epoch=0, indices=rows))

        def first(rows: np.ndarray) -> Any:
            return fresh.__getitems__(rows)

        works = {
            "first read": first,
            "later reads": dataset.__getitems__,
            "NumPy's gather": lambda rows: np.take(read.numpy(), rows, 0, out),
            "training, crop and flip": fetched(dataset, augment),
            "the same in memory": fetched(memory, augment),
            "evaluation": fetched(dataset, None),
            "evaluation in memory": fetched(memory, None),
        }
        spent: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(OFTEN):
            fresh = build({"folder": folder})
            fresh.__getitems__(every[0][:0])  # finds its folder
            for name, work in works.items():
                begun = time.thread_time()
                for rows in every:
                    work(rows)
                spent[name].append((time.thread_time() - begun) / every.size * 1e6)
        return {name: statistics.quantiles(values, n=10)[0] for name, values in spent.items()}


def warm_in_turn(arguments: list[str], tree: Path | None, rounds: int) -> None:
    trees = {"": Path(__file__).resolve().parents[1], **({str(tree): tree} if tree else {})}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for number in range(rounds):
        for name in [*trees][:: 1 if number % 2 else -1]:
            command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--json"]
            own = environment(PYTHONPATH=str(trees[name]))
            done = subprocess.run(command, cwd=trees[name], env=own, check=True, capture_output=True)
            found[name].append(json.loads(done.stdout))
    for what in found[""][0]:
        own = [one[what] for one in found[""]]
        line = f"  {what:<26}{statistics.median(own):8.2f} µs an image"
        if tree:
            ratios = [one / two[what] for one, two in zip(own, found[str(tree)], strict=True)]
            other = statistics.median(one[what] for one in found[str(tree)])
            line += f"; {tree.name} {other:8.2f}, ratio {statistics.median(ratios):.2f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("size", 64), ("side", 128), ("count", 600), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--warm", action="store_true", help="what a filled cache costs")
    parser.add_argument("--tree", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    load_decoders()
    if not given.folder.is_dir():
        make(given.folder, given.count * 5 // 4)

    def build(cache: Any) -> Any:
        config = ImageFolder(root=str(given.folder), eval_fraction=0.1, image_size=given.size, cache=cache)
        return datasets.build(config).train

    count = min(given.count, len(build(None)))
    if given.json:
        print(json.dumps(warm(build, count)))
        return
    if given.warm:
        sizes = ["--size", str(given.size), "--count", str(given.count)]
        warm_in_turn([str(given.folder.resolve()), *sizes], given.tree and given.tree.resolve(), given.rounds)
        return
    compare(build, {}, False, count, given.rounds)
    compare(build, {"side": given.side}, True, count, given.rounds)


if __name__ == "__main__":
    main()
