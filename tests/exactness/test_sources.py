"""Each task and each kind of data: one training of it, in all ways."""

import importlib.util

import pytest

from dist_train.config.schema import DataConfig
from tests import rank_pool
from tests.exactness.pool import Pool
from tests.exactness.sources import DATA, DOWNLOADED, lived, members, rows

ROWS = {row.title: row for row in rows()}


@pytest.fixture(scope="module")
def pool():
    rank_pool.start_server()
    with Pool() as pool:
        yield pool


def test_the_table_has_every_kind_of_data_of_the_schema():
    assert {*DATA, *DOWNLOADED} == set(members(DataConfig)) and not DOWNLOADED & DATA.keys()


@pytest.mark.long
@pytest.mark.parametrize("title", ROWS)
def test_it_ends_in_the_same_bits_on_any_number_of_ranks_and_after_a_stop_and_a_kill(pool, tmp_path, title):
    if title == "data huggingface" and importlib.util.find_spec("datasets") is None:
        pytest.skip("needs datasets")
    assert lived(pool.run, ROWS[title], tmp_path / "run") == {}
