"""`run_ranks(function, world_size, *args)`: real processes for every test in this folder. See tests/rank_pool.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import rank_pool
from tests.distributed.training import result, train, write_configs


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[Any]]:
    """rank_pool.run_ranks, with its fork server started before the first test that needs it."""
    rank_pool.start_server()
    return rank_pool.run_ranks


@pytest.fixture(scope="session")
def whole(once, run_ranks) -> Any:
    """The result of base.yaml on one rank, when nothing happens to it."""

    def make(folder: Path) -> None:
        write_configs(folder)
        assert run_ranks(train, 1, folder, "base.yaml", "run") == [0]

    return result(once("whole", make) / "run")


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path
