"""Pages of memory that ranks share with the supervisor."""

import os
import resource

import pytest

from launch.rank.page import ERROR, FACTS, SIZE, Page, Pages


@pytest.fixture
def pages():
    pages = Pages(2)
    yield pages
    pages.close()


def test_a_record_is_read_by_the_number_of_its_page(pages):
    assert pages.get(0, FACTS) is None
    first, second = Page(pages.path, 0), Page(pages.path, 1)
    second.put(FACTS, {"rank": 7})
    second.put(FACTS, {"rank": 8})
    first.memory[:4] = b"beat"
    assert pages.get(1, FACTS) == {"rank": 8} and pages.get(0, FACTS) is None and pages.get(1, ERROR) is None
    assert pages.head(0)[:4] == b"beat" and pages.head(1)[:4] == bytes(4)


def test_what_would_not_fit_is_cut_and_still_read(pages):
    record = {"code": 10, "traceback": "x" * 2 * SIZE, "frames": [{"file": "f" * 100}] * 30_000, "chain": []}
    Page(pages.path, 0).put(ERROR, record)
    found = pages.get(0, ERROR)
    assert found["code"] == 10 and found["traceback"] == "x" * 100_000 and found["frames"] == []
    assert pages.get(1, FACTS) is None, "the next page is untouched"


def test_a_limit_on_the_size_of_files_is_not_meant_for_it():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        pages = Pages(2)
        assert resource.getrlimit(resource.RLIMIT_FSIZE) == (1000, limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    Page(pages.path, 1).put(FACTS, {"rank": 1})
    assert pages.get(1, FACTS) == {"rank": 1}
    pages.close()


def test_half_a_record_is_none(pages):
    page = Page(pages.path, 0)
    page.put(FACTS, {"rank": 1})
    page.memory[FACTS[0] + 8] = ord("?")
    assert pages.get(0, FACTS) is None


def test_without_a_supervisor_a_page_is_nobody_elses(tmp_path):
    page = Page(str(tmp_path / "nothing"), 3)
    page.put(FACTS, {"rank": 1})
    assert os.listdir(tmp_path) == []
