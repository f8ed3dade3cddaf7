"""Draws, one after another, in a pool of ranks; what fails there is tried again in new processes, and made small."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tests import rank_pool
from tests.exactness.check import Verdict, check
from tests.exactness.draws import Draw, config_of, exists, is_valid, known
from tests.exactness.lives import Ended
from tests.exactness.pool import PATIENCE, Hung, Pool
from tests.exactness.tables import FOLDER
from tests.exactness.zoo import Animal
from tests.exactness.zoo.animals import SMALL

MOST_REFUSED = 0.1
"""Share of random draws."""


MEMORY = Path("/dev/shm")
"""Where files cost no disk, if the machine has it: nothing here is about what a disk does."""


class Matrix:
    """A context manager."""

    def __enter__(self) -> "Matrix":
        self._open, self._numbers = contextlib.ExitStack(), count()
        room = str(MEMORY) if os.access(MEMORY, os.W_OK) else None
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="exactness-", dir=room)))
        self._pool = self._open.enter_context(Pool())
        make_images(self._folder / "images")
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def verdict(self, draw: Draw, thorough: bool = True) -> Verdict:
        """What is wrong in the pool counts when it is wrong in processes of its own too; a difference between the two
        is wrong as well, since it means that something outlives a training."""
        found = self._check(self._pool.run, draw, thorough)
        if not found.is_wrong:
            return found
        again = self._check(alone, draw, thorough)
        if again.is_wrong:
            return again
        return Verdict(kind="wrong", detail=f"only after other trainings in the same process: {found.detail}")

    def shrunk(self, draw: Draw, verdict: Verdict) -> tuple[Draw, Verdict]:
        """The draw with as much as can be at its first level, and still wrong: halves first, then single keys."""
        size = len(draw) // 2
        while size:
            paths = [path for path, level in draw.items() if level != known()[path].levels[0]]
            for begin in range(0, len(paths), size):
                simpler = _simpler(draw, paths[begin : begin + size])
                if simpler != draw and is_valid(simpler):
                    found = self._check(self._pool.run, simpler, thorough=True)
                    draw, verdict = (simpler, found) if found.is_wrong else (draw, verdict)
            size //= 2
        return draw, verdict

    def habit(self, animal: Animal) -> Verdict:
        """The verdict on an animal of the zoo."""

        def named(ended: Ended) -> str | None:
            said = animal.refused is not None and "\n" not in ended.said and re.search(animal.refused, ended.said)
            return ended.said if said else None

        folder = self._folder / f"zoo{next(self._numbers)}"
        return check(self._pool.run, {**SMALL, **animal.config}, folder, thorough=False, why_refused=named)

    def _check(self, run_ranks: Callable[..., list[Any]], draw: Draw, thorough: bool) -> Verdict:
        config = config_of(draw)
        data = config["data"]
        if data.get("root", "").startswith(FOLDER):
            data["root"] = data["root"].replace(FOLDER, str(self._folder))
        if isinstance(cache := data.get("cache"), dict):
            cache["folder"] = cache["folder"].replace(FOLDER, str(self._folder))
        return check(run_ranks, config, self._folder / f"draw{next(self._numbers)}", thorough=thorough)


def alone(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """As Pool.run, in new processes."""
    try:
        return rank_pool.run_ranks(function, world_size, *args, timeout=PATIENCE)
    except rank_pool.RankFailed as failed:
        if "killed by SIGKILL" in str(failed):
            return []
        raise Hung(str(failed)) from None


def _simpler(draw: Draw, paths: Sequence[str]) -> Draw:
    """The draw with `paths` at their first levels; so is what exists only now."""
    changed: Draw = {}
    for path, dimension in known().items():
        if exists(dimension, changed):
            changed[path] = dimension.levels[0] if path in paths else draw.get(path, dimension.levels[0])
    return changed


def make_images(folder: Path) -> None:
    """Two classes of small pictures, of several sizes."""
    import torch
    from torchvision.io import write_png

    for kind in range(2):
        (folder / f"kind{kind}").mkdir(parents=True)
        for number in range(34):
            height, width = 12 + number % 3, 12 + number % 5
            picture = torch.arange(3 * height * width).view(3, height, width) * (3 + kind) + 17 * number
            write_png((picture % 256).to(torch.uint8), str(folder / f"kind{kind}" / f"{number}.png"))
