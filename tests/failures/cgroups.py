"""Memory cgroups with a limit, of version 1 or 2."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_train.memory import text_in


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A folder whose cgroup.procs takes processes; the test is skipped where none can be had."""
    name = f"dist-train-test-{uuid.uuid4()}"
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(root) / name
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / file).exists():
            (folder / file).write_text(str(limit))
            yield folder
            folder.rmdir()
            return
        folder.rmdir()
    pytest.skip("no memory cgroup can be made here: needs root and the memory controller")


def peak(folder: Path) -> int:
    """The most bytes that it has used, pages of files among them."""
    return int(text_in(folder / "memory.max_usage_in_bytes") or text_in(folder / "memory.peak"))


def swapped(folder: Path) -> int:
    """Bytes of it that are swapped out now."""
    words = text_in(folder / "memory.stat").split()
    of_version_1 = int(words[words.index("total_swap") + 1]) if "total_swap" in words else 0
    return of_version_1 or int(text_in(folder / "memory.swap.current") or 0)
