"""For every test: nothing may be left behind."""

import compileall
import fcntl
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.leaks import Surroundings, mark_this_process
from tests.sharing import Sharing, places

ROOT = Path(__file__).parents[1]
COMPILED = ("dist_train", "launch", "tests", "examples", "benchmarks")
MEMORY, ROOM = "/dev/shm", 1_000_000_000
_FOLDERS: list[str] = []
_WRITES_NO_BYTECODE = sys.dont_write_bytecode


def pytest_configure(config: pytest.Config) -> None:
    # With PYTHONDONTWRITEBYTECODE set, as in many containers, each of hundreds of launches would compile all of us
    # anew. What tests write is not compiled to disk even so, but for themselves, whose asserts pytest rewrites.
    if not hasattr(config, "workerinput"):
        for name in COMPILED:
            compileall.compile_dir(ROOT / name, quiet=2)
    sys.dont_write_bytecode = False
    gc.disable()  # what is imported is no garbage, and finding that out takes a seventh of the time
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
    place = places([item.nodeid for item in items])
    items.sort(key=lambda item: place[item.nodeid])


def pytest_collection_finish() -> None:
    sys.dont_write_bytecode = _WRITES_NO_BYTECODE
    gc.freeze()  # nor is it looked through again, here and in what tests fork
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    while _FOLDERS:
        shutil.rmtree(_FOLDERS.pop(), ignore_errors=True)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """As tmp_path, where files cost no disk if the machine has such a place: for trainings that save all the time, in
    tests that are not about what a disk does."""
    room = MEMORY if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM else None
    with tempfile.TemporaryDirectory(prefix="dist-train-test-", dir=room) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: a folder that `make(folder)` has filled, in the worker that asked first. All share
    it, so it is left as it is."""
    own = tmp_path_factory.getbasetemp()
    home = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = home / f"once-{name}", home / f"once-{name}.made"
        with (home / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test that leaves a process, a thread, a changed environment or another working directory."""
    before = Surroundings.now()
    yield
    violations = before.violations()
    if violations:
        pytest.fail("left behind:\n  " + "\n  ".join(violations), pytrace=False)
