"""For every test: nothing may be left behind."""

from collections.abc import Iterator

import pytest

from tests.leaks import Surroundings, mark_this_process


def pytest_configure(config: pytest.Config) -> None:
    mark_this_process()


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test that leaves a process, a thread, a changed environment or another working directory."""
    before = Surroundings.now()
    yield
    violations = before.violations()
    if violations:
        pytest.fail("left behind:\n  " + "\n  ".join(violations), pytrace=False)
