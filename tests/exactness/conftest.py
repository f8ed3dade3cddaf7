"""One pool of ranks for all tests of a worker, and the set of all pairs for all workers."""

import json

import pytest

from tests import rank_pool
from tests.exactness.covering import in_pairs
from tests.exactness.matrix import Matrix


@pytest.fixture(scope="session")
def matrix():
    rank_pool.start_server()
    with Matrix() as matrix:
        yield matrix


@pytest.fixture(scope="session")
def pairs_of_choices(once):
    """`in_pairs()`, which takes seconds to find."""
    folder = once("pairs", lambda folder: (folder / "draws.json").write_text(json.dumps(in_pairs())))
    return json.loads((folder / "draws.json").read_text())
