"""Tar files of small samples: how long they take to index, the first sample to come, and what memory reading takes.

    python -m benchmarks.shards FOLDER [--samples 1000000] [--tars 100]

Makes the tars in FOLDER where they are not there yet (4 GB for a million samples), and leaves them there. Each line is
of a process of its own.
"""

import argparse
import io
import multiprocessing
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dist_train.config.schema import Shards
from dist_train.data import datasets
from dist_train.data.decode import load_decoders

CLASSES, SIDE, READS = 10, 8, 100_000


def make(folder: Path, samples: int, tars: int, name: str = "train") -> None:
    """Writes `tars` files with PNG images of noise in one of 10 colours, as WebDataset's writer writes them (pax)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, keys in enumerate(np.array_split(np.arange(samples), tars)):
        path = folder / f"{name}-{number:03}.tar"
        if path.exists():
            continue
        with tarfile.open(path.with_suffix(".part"), "w") as tar:
            for key in keys.tolist():
                add(tar, f"{key:09}.png", png(key))
                add(tar, f"{key:09}.cls", str(key % CLASSES).encode())
        path.with_suffix(".part").rename(path)


def png(key: int) -> bytes:
    """An image whose brightness tells its class."""
    pixels = np.random.default_rng(key).integers(0, 30, (SIDE, SIDE, 3), dtype=np.uint8) + np.uint8(
        22 * (key % CLASSES)
    )
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "png", compress_level=1)
    return written.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(content), 1.7e9 + 0.25  # a fraction of a second needs a pax header
    tar.addfile(member, io.BytesIO(content))


def config(folder: Path) -> Shards:
    return Shards(
        train=str(folder / "train-*.tar"), eval=str(folder / "train-000.tar"), classes=CLASSES, image_size=SIDE
    )


def memory() -> dict[str, int]:
    """kB of this process: its own, and what it has mapped of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines if line[:3] == "Rss")}


def first_sample(folder: Path) -> tuple[float, float]:
    """Milliseconds until there is a first sample, by the clock and of this process, once the decoders are loaded."""
    load_decoders()
    begun, used = time.perf_counter(), time.process_time()
    train = datasets.build(config(folder)).train
    train.__getitems__(np.array([len(train) // 3]))
    return 1e3 * (time.perf_counter() - begun), 1e3 * (time.process_time() - used)


def reading(folder: Path) -> tuple[float, list[dict[str, int]]]:
    """Samples a second at random places, and memory at the begin and after each tenth of the reads."""
    train = datasets.build(config(folder)).train
    order = np.random.default_rng(0).integers(0, len(train), (11, READS // 10))
    train.__getitems__(order[0])
    found, begun = [memory()], time.perf_counter()
    for part in order[1:]:
        train.__getitems__(part)
        found.append(memory())
    return READS / (time.perf_counter() - begun), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--tars", type=int, default=100)
    given = parser.parse_args()
    make(given.folder, given.samples, given.tars)
    for index in given.folder.glob(".*.index"):
        index.unlink()
    fork = multiprocessing.get_context("fork")
    for what in ("without indices", *["with indices"] * 5):
        with fork.Pool(1) as pool:
            first, used = pool.apply(first_sample, (given.folder,))
        print(f"{what}: first sample after {first:,.1f} ms, {used:,.1f} ms of a core", flush=True)
    with fork.Pool(1) as pool:
        rate, found = pool.apply(reading, (given.folder,))
    for name in found[0]:
        print(f"{name}: {', '.join(f'{one[name]:,}' for one in found)} kB")
    print(f"{rate:,.0f} samples a second at random places, by one process")


if __name__ == "__main__":
    main()
