"""Each task and each kind of data of the schema through whole trainings: on 1, 2 and 3 ranks, with and without loading
processes, stopped and killed in the midst and gone on with other ranks. All leave the same bits, metrics and samples.

    python -m tests.exactness.sources [NAME …]     prints the table
"""

import csv
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml

from benchmarks.shards import make as make_shards
from dist_train.config.schema import TaskConfig
from tests import rank_pool
from tests.exactness import lives
from tests.exactness.check import RunRanks
from tests.exactness.lives import Ended, Result
from tests.exactness.matrix import make_images
from tests.exactness.pool import Pool

BASE: dict[str, Any] = {
    "name": "run",
    "optimizer": {"name": "adamw", "lr": 0.01},
    "batch": {"microbatches": 6, "global_size": 12},
    "train": {"duration": "8 steps"},
    "eval": {"every": "4 steps", "batch_size": 7},
    "checkpoint": {"every": "2 steps"},
    "tracking": {"samples": True, "wandb": {"mode": "disabled"}},
}
OWN = "of one's own"
LIVES = ("2 ranks", "3 ranks", "stopped", "killed")
DOWNLOADED = {"cifar10", "cifar100", "mnist", "fashion_mnist"}
"""Held in memory as digits are; their files have to be the real ones."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        section: `data` or `task`, and which of its members.
        config: makes its files in a folder, and gives what it adds to BASE.
    """

    section: str
    name: str
    config: Callable[[Path], dict[str, Any]]

    @property
    def title(self) -> str:
        return f"{self.section} {self.name}"


def rows() -> Iterator[Row]:
    """All of them."""
    for name in members(TaskConfig):
        yield Row("task", name, partial(_kind, name, {"task": {"name": name}}))
    yield Row("task", OWN, partial(_kind, "classification", {"task": {"name": "tests.distributed.kinds:Whole"}}))
    yield Row("data", OWN, partial(_kind, "classification", {}))
    for name, config in DATA.items():
        yield Row("data", name, config)


def _kind(task: str, more: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Data and a model for a task."""
    args = {"args": {"task": task}}
    kinds = {"data": "tests.distributed.kinds:Kind", "model": "tests.distributed.kinds:Net"}
    return {section: {"name": name, **args} for section, name in kinds.items()} | more


def members(union: Any) -> list[str]:
    """The names of a section's members that have one."""
    found = [get_args(one)[0].model_fields["name"].default for one in get_args(get_args(union)[0])]
    return [name for name in found if isinstance(name, str)]


# ---------------------------------------------------------------- data


def _digits(folder: Path) -> dict[str, Any]:
    return {"data": {"name": "digits"}, "model": {"name": "mlp", "hidden": [8]}}


def _synthetic(folder: Path) -> dict[str, Any]:
    return {"data": {"name": "synthetic", "shape": [3, 8, 8], "size": 60, "eval_size": 19}, **_pictures()}


def _image_folder(folder: Path) -> dict[str, Any]:
    make_images(folder / "images")
    sizes = {"image_size": 8, "eval_fraction": 0.2}
    return {"data": {"name": "image_folder", "root": str(folder / "images"), **sizes}, **_pictures()}


def _shards(folder: Path) -> dict[str, Any]:
    make_shards(folder / "shards", 80, 3)
    tars = {"train": str(folder / "shards/train-*.tar"), "eval": str(folder / "shards/train-000.tar")}
    return {"data": {"name": "shards", **tars, "classes": 10, "image_size": 8}, **_pictures()}


def _huggingface(folder: Path) -> dict[str, Any]:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value, disable_progress_bars

    draw = random.Random(0)
    points = [[draw.gauss(0, 1), draw.gauss(0, 1)] for _ in range(80)]
    kinds = Features({"point": Sequence(Value("float32"), 2), "label": ClassLabel(names=["below", "above"])})
    disable_progress_bars()
    table = Dataset.from_dict({"point": points, "label": [int(x > y) for x, y in points]}, kinds)
    table.to_parquet(str(folder / "points.parquet"))
    files = {"train": str(folder / "points.parquet"), "eval": str(folder / "points.parquet")}
    columns = {"inputs": "point", "targets": "label", "cache_folder": str(folder / "cache")}
    net = {"name": "torch.nn:Linear", "args": {"in_features": 2, "out_features": 2}}
    return {"data": {"name": "huggingface", **files, **columns}, "model": net}


def _table(folder: Path) -> dict[str, Any]:
    draw = random.Random(0)
    points = [(draw.gauss(5, 2), draw.gauss(-100, 30)) for _ in range(80)]
    with (folder / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("x", "y", "side"), *((x, y, "near" if x > 5 else "far") for x, y in points)])
    data = {"name": "table", "root": str(folder / "points.csv"), "targets": ["side"]}
    return {"data": data, "model": {"name": "mlp", "hidden": [8]}}


def _text(folder: Path) -> dict[str, Any]:
    words, draw = ["the", "quick", "brown", "fox", "jumps"], random.Random(0)
    (folder / "words.txt").write_text(" ".join(draw.choice(words) for _ in range(600)))
    data = {"name": "text", "root": str(folder / "words.txt"), "tokenizer": "chars", "context": 16, "stride": 8}
    return {"data": {**data, "cache_folder": str(folder / "text-cache")}, **_language()}


def _tokens(folder: Path) -> dict[str, Any]:
    drawn = np.random.default_rng(0).integers(0, 11, 2_000, dtype=np.uint16)
    (folder / "tokens").mkdir()
    drawn.tofile(folder / "tokens" / "train.bin")
    drawn[:400].tofile(folder / "tokens" / "val.bin")
    data = {"name": "tokens", "root": str(folder / "tokens"), "context": 16, "stride": 8, "vocabulary": 11}
    return {"data": data, **_language()}


def _pictures() -> dict[str, Any]:
    flip = [{"name": "random_crop", "padding": 1}, {"name": "horizontal_flip"}]
    return {"model": {"name": "cnn", "width": 4, "dropout": 0.2}, "augment": flip}


def _language() -> dict[str, Any]:
    model = {"name": "gpt", "layers": 1, "heads": 2, "width": 16, "dropout": 0.1}
    return {"model": model, "task": {"name": "language_model"}}


DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "digits": _digits,
    "synthetic": _synthetic,
    "image_folder": _image_folder,
    "shards": _shards,
    "huggingface": _huggingface,
    "table": _table,
    "text": _text,
    "tokens": _tokens,
}


# ---------------------------------------------------------------- lives


def lived(run_ranks: RunRanks, row: Row, folder: Path) -> dict[str, str]:
    """By way of life, what differs from an undisturbed one on one rank; empty where nothing does."""
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**BASE, **row.config(folder)}, sort_keys=False))

    def life(run: str, ranks: int, *overrides: str) -> Result:
        ended = run_ranks(lives.live, ranks, str(path), str(folder / run), *overrides)
        return lives.result(folder / run, ended[0] if ended else Ended(code=-9))

    whole = life("whole", 1, "loader.workers=0")
    if whole.ended.code != 0 or not whole.samples:
        return dict.fromkeys(LIVES, f"on 1 rank: {whole.ended}")
    ends = {"2 ranks": life("two", 2, "loader.workers=1"), "3 ranks": life("three", 3, "loader.workers=0")}
    life("stopped", 3, "train.stop_after=3 steps")
    ends["stopped"] = life("stopped", 2)
    run_ranks(lives.live_and_die, 2, 5, str(path), str(folder / "killed"))
    ends["killed"] = life("killed", 3)
    return {way: found for way, end in ends.items() if (found := whole.difference(end))}


def main(names: list[str]) -> int:
    wrong = 0
    rank_pool.start_server()
    with tempfile.TemporaryDirectory(prefix="sources-") as place, Pool() as pool:
        print(f"{'':<24}" + "".join(f"{way:<9}" for way in LIVES))
        for row in rows():
            if names and row.name not in names:
                continue
            begun = time.monotonic()
            found = lived(pool.run, row, Path(place) / row.title.replace(" ", "-"))
            cells = "".join(f"{'differs' if way in found else 'equal':<9}" for way in LIVES)
            print(f"{row.title:<24}{cells}{time.monotonic() - begun:5.1f} s  {'; '.join(found.values())}", flush=True)
            wrong += bool(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
