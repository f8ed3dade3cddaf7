"""One pool of ranks for all tests of a worker."""

import pytest

from tests import rank_pool
from tests.exactness.matrix import Matrix


@pytest.fixture(scope="session")
def matrix():
    rank_pool.start_server()
    with Matrix() as matrix:
        yield matrix
