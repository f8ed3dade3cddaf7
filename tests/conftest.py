"""For every test: nothing may be left behind."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

from tests.leaks import Surroundings, mark_this_process
from tests.sharing import Sharing, group_of

_FOLDERS: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Sharing())
    mark_this_process()
    _FOLDERS.append(tempfile.mkdtemp(prefix="dist-train-tests-"))
    os.environ["XDG_CONFIG_HOME"] = _FOLDERS[-1]  # what tests train is not to be trusted outside of them
    # Threads of OpenMP that wait for work spin, in every process of every worker: half of the suite's processor time.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A shell without job control starts its background jobs with SIGINT ignored, and what they start inherits that:
    # a test's Ctrl-C would do nothing to a child that has no handler of its own.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run one after the other in one worker come first, so that the other workers do not wait for them."""
    items.sort(key=lambda item: group_of(item.nodeid) is None)


def pytest_unconfigure(config: pytest.Config) -> None:
    while _FOLDERS:
        shutil.rmtree(_FOLDERS.pop(), ignore_errors=True)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test that leaves a process, a thread, a changed environment or another working directory."""
    before = Surroundings.now()
    yield
    violations = before.violations()
    if violations:
        pytest.fail("left behind:\n  " + "\n  ".join(violations), pytrace=False)
