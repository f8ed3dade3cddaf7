"""`python -m tests.docs.photos FOLDER`: a folder of small pictures, herons, storks and cranes that differ in colour."""

import sys
from pathlib import Path

import torch
from torchvision.io import write_jpeg

KINDS = {"crane": (0, 60), "heron": (1, 60), "stork": (2, 60)}
"""By name: its colour channel, and how many."""


def write(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, (channel, count) in KINDS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = torch.randint(0, 120, (3, 48, 64), dtype=torch.uint8, generator=generator)
            image[channel] += 100
            write_jpeg(image, str(folder / name / f"{number:03}.jpg"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
