"""What each stage of loading costs a core, beside its limit, and whether threads beside the step pay.

    python -m benchmarks.data [--seconds 1] [--threads]

A stage's limit is what the same machine does with nothing but the work that cannot be left out: reading the bytes,
decoding them, writing the result once. Both are measured in turn, so what else the machine does falls on both alike.
`--threads` trains on 2 ranks of one thread, with loader.threads 0, 1 and auto in turn.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.pairs import run_pair
from dist_train.config.schema import (
    BatchConfig,
    Cnn,
    ColorJitter,
    HorizontalFlip,
    ImageFolder,
    LoaderConfig,
    Normalize,
    RandomCrop,
    RandomResizedCrop,
    RunConfig,
)
from dist_train.data import datasets, decode
from dist_train.data.augment import Augment
from dist_train.data.datasets.base import Splits, TensorImages
from dist_train.data.device_transform import DeviceTransform
from dist_train.data.loader import train_batches
from dist_train.data.resize import resize
from dist_train.data.windows import cut
from dist_train.parallel.ranks import Ranks

BATCH = 64
CROP, FLIP = RandomCrop(), HorizontalFlip()
NORMALIZE = Normalize(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, node=0)
Work = Callable[[], object]


def photos(folder: Path, count: int = 256) -> None:
    """JPEG files of 370 × 272 pixels, with the amount of detail that photographs have: about 60 KB each."""
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = draw.integers(0, 256, (17, 24, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((370, 272), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + draw.normal(0, 16, pixels.shape)).clip(0, 255).astype(np.uint8)
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=92)


def rates(ours: Work, limit: Work, seconds: float, images: int) -> tuple[float, float]:
    """Images a second of both, of the fastest tenth of their turns: what a core can do when it is let."""
    found: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(found[0]) < 5:
        for work, spent in zip((ours, limit), found, strict=True):
            begun = time.thread_time()
            work()
            spent.append(time.thread_time() - begun)
    return images / statistics.quantiles(found[0], n=10)[0], images / statistics.quantiles(found[1], n=10)[0]


def stages(folder: Path, side: int) -> list[tuple[str, str, Work, Work]]:
    """(stage, its limit, ours, the limit's) for images of `side` pixels."""
    paths = sorted(folder.glob("*/*.jpg"))[:BATCH]
    files = [bytearray(path.read_bytes()) for path in paths]
    decoder = decode._jpeg_decoder()[1]
    images = [decode.decode_bytes(content) for content in files]
    store = torch.randint(0, 256, (2048 if side < 64 else 256, 3, side, side), dtype=torch.uint8)
    rows = np.random.default_rng(0).permutation(len(store))[:BATCH]
    batch = store[torch.from_numpy(rows)]
    floats, copy = torch.empty(batch.shape), torch.empty_like(batch)

    def augmented(*items: object) -> Work:
        augment = Augment(items, 0)
        return lambda: augment(store, 0, rows, rows)

    def resized() -> list[Tensor]:
        crop = Augment([RandomResizedCrop()], 0).crop(0, rows)
        assert crop is not None
        return [crop(row, image, side, side) for row, image in enumerate(images)]

    normalize = DeviceTransform([NORMALIZE], CPU)

    def write() -> Tensor:
        return copy.copy_(batch)

    def plain() -> list[bytes]:
        return [path.read_bytes() for path in paths]

    def floated() -> Tensor:
        return normalize(batch, None, 0, 0)[0]

    return [
        ("read a file", "Python's own", lambda: [*map(decode._read, paths)], plain),
        ("decode", decode.decoder_name(), lambda: [*map(decode.decode_bytes, files)], lambda: [*map(decoder, files)]),
        ("random_resized_crop", "resize", resized, lambda: [resize(image, side, side) for image in images]),
        ("gather", "copy", lambda: cut(store, rows, None), write),
        ("gather, crop", "copy", augmented(CROP), write),
        ("gather, crop, flip", "copy", augmented(CROP, FLIP), write),
        ("color_jitter", "copy", augmented(ColorJitter()), write),
        ("float, normalize", "float", floated, lambda: floats.copy_(batch)),
    ]


CPU = torch.device("cpu")


def loader(data: object, splits: Splits, augment: list, parts: int = 4) -> Work:
    """Steps of one rank, loaded in the step."""
    batch, how = BatchConfig(global_size=BATCH, microbatches=parts), LoaderConfig(workers=0, threads=0)
    run = RunConfig(data=data, augment=augment, model=Cnn(), loader=how, batch=batch)
    steps = train_batches(run, splits, ALONE, CPU, 0, 10**6)
    return lambda: next(steps)


def table(seconds: float) -> None:
    print("images/s of a core                     ours       limit  share")

    def row(name: str, limit: str, ours: Work, least: Work) -> None:
        a, b = rates(ours, least, seconds, BATCH)
        print(f"{name:<32}{a:>11,.0f} {b:>11,.0f}  {100 * a / b:4.0f} %  of {limit}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos(folder)
        for side in (32, 160):
            print(f"{side} pixels, from photos of 370 × 272")
            for stage in stages(folder, side):
                row(*stage)
        data = ImageFolder(root=name, eval_fraction=0.1, image_size=64)
        decoder = decode._jpeg_decoder()[1]
        files = [bytearray(path.read_bytes()) for path in sorted(folder.glob("*/*.jpg"))[:BATCH]]
        whole = loader(data, datasets.build(data), [RandomResizedCrop(), FLIP, NORMALIZE])
        print("whole loader, in the step")
        row("files, 64 pixels", "decoding", whole, lambda: [*map(decoder, files)])
    store = TensorImages(
        torch.randint(0, 256, (8192, 3, 32, 32), dtype=torch.uint8), torch.zeros(8192, dtype=torch.long)
    )
    splits = Splits(train=store, evaluation=store, shape=store.shape)
    batch = store.images[:BATCH]
    whole = loader({"name": "synthetic"}, splits, [CROP, FLIP, NORMALIZE])
    row("memory, 32 pixels", "floats", whole, lambda: batch.to(torch.float32))


TRAINING = """
name: data
data: {{name: image_folder, root: {root}, eval_fraction: 0.02, image_size: {side}}}
augment: [{{name: random_resized_crop}}, {{name: horizontal_flip}}]
model: {{name: cnn, width: {width}}}
loader: {{workers: 0}}
batch: {{global_size: 32, microbatches: 2}}
train: {{duration: 100000 steps, sanity_check: false}}
eval: {{every: 100000 steps}}
checkpoint: {{every: 100000 steps}}
tracking: {{wandb: {{mode: disabled}}}}
"""


def threads(pairs: int) -> None:
    """Steps with a loader.threads of 1 and of auto, over those with 0, on as many ranks as cores and on one."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "photos"
        photos(root)
        for ranks in (len(os.sched_getaffinity(0)), 1):
            config = Path(name) / f"{ranks}.yaml"
            config.write_text(TRAINING.format(root=root, side=64, width=16))
            for count in ("1", "auto"):
                found = [
                    run_pair(
                        command(config, count), command(config, "0"), slices=4, steps=15, ranks=ranks, warm_up=8,
                        global_batch=32,
                    ).ratio("step_s")
                    for _ in range(pairs)
                ]  # fmt: skip
                said = f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"
                print(f"{ranks} ranks, loader.threads {count} over 0: step time {said}, {pairs} pairs", flush=True)


def command(config: Path, count: str) -> Callable[[Path], list[str]]:
    return lambda folder: [
        *("-m", "benchmarks.timed_worker", str(folder / "stamps"), str(config)),
        *(f"loader.threads={count}", "--run-dir", str(folder / "run")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row")
    parser.add_argument("--threads", type=int, default=0, metavar="PAIRS", help="train with and without threads")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.threads:
        threads(given.threads)
    else:
        table(given.seconds)


if __name__ == "__main__":
    sys.exit(main())
