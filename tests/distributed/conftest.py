"""`run_ranks(function, world_size, *args)`: real processes for every test in this folder. See tests/rank_pool.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import rank_pool


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[Any]]:
    """rank_pool.run_ranks, with its fork server started before the first test that needs it."""
    rank_pool.start_server()
    return rank_pool.run_ranks


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path
