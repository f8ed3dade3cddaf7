"""What a test may not leave behind: processes, threads, a changed environment, another working directory."""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

MARK = "DIST_TRAIN_TEST_PROCESS"
"""Set to our pid and inherited by everything that a test starts, so that an orphan is still known as ours."""
PATIENCE = 3.0
"""Seconds that a process or a thread may take to be gone."""
SET_BY_IMPORTS = {"PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"}
"""Variables that pytest, scikit-learn or torch set in their own process, at a time of their choosing."""

SERVERS: set[int] = set()
"""Processes that a fixture of many tests has started anew inside of one of them, and ends itself."""


def mark_this_process() -> None:
    os.environ[MARK] = str(os.getpid())


@dataclass(frozen=True)
class Surroundings:
    """A snapshot of what a test found. Of processes all are kept: only those that are new have to be looked at."""

    processes: frozenset[int]
    threads: frozenset[threading.Thread]
    environment: dict[str, str]
    folder: str

    @classmethod
    def now(cls) -> "Surroundings":
        return cls(frozenset(_pids()), frozenset(threading.enumerate()), dict(os.environ), os.getcwd())

    def violations(self) -> list[str]:
        """One line for everything that is different now. Environment and folder are put back."""
        return [*self._new_processes(), *self._new_threads(), *self._changed_variables(), *self._changed_folder()]

    def _new_processes(self) -> list[str]:
        deadline = time.monotonic() + PATIENCE
        while left := _ours(_pids() - self.processes):
            if time.monotonic() > deadline:
                return [f"process {pid} is still alive: {left[pid]}" for pid in sorted(left)]
            time.sleep(0.02)
        return []

    def _new_threads(self) -> list[str]:
        deadline = time.monotonic() + PATIENCE
        while left := [t for t in threading.enumerate() if t not in self.threads and not t.daemon]:
            if time.monotonic() > deadline:
                return [f"thread {thread.name!r} still runs" for thread in left]
            time.sleep(0.02)
        return []

    def _changed_variables(self) -> list[str]:
        names = (os.environ.keys() | self.environment.keys()) - SET_BY_IMPORTS
        changed = sorted(name for name in names if os.environ.get(name) != self.environment.get(name))
        # Names alone: a value may be a secret.
        found = [f"environment variable {name} was changed; use monkeypatch" for name in changed]
        for name in changed:
            if name in self.environment:
                os.environ[name] = self.environment[name]
            else:
                del os.environ[name]
        return found

    def _changed_folder(self) -> list[str]:
        now = os.getcwd()
        if now == self.folder:
            return []
        os.chdir(self.folder)
        return [f"the working directory was changed to {now}; use monkeypatch.chdir"]


def _pids() -> set[int]:
    """Of every process of the machine."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _ours(pids: set[int]) -> dict[int, str]:
    """Command lines of those that live and were started by this process, by pid, however far they have moved away."""
    found = {pid for pid in pids - _helpers() - {os.getpid()} if _descends(pid) or _is_marked(pid)}
    return {pid: command for pid in found if (command := _command(pid))}


def _helpers() -> set[int]:
    """The servers that multiprocessing and fixtures keep for the life of this process."""
    from multiprocessing import forkserver, resource_tracker

    pids = {resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid}  # type: ignore[attr-defined]
    return {pid for pid in pids if pid} | SERVERS


def _read(path: str) -> bytes:
    """Of a file of /proc; empty where its process has ended meanwhile, or is another user's."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 17), b""))
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _descends(pid: int) -> bool:
    while pid > 0:
        stat = _read(f"/proc/{pid}/stat").rpartition(b")")[2]  # behind the program's name
        pid = int(stat.split(maxsplit=2)[1]) if stat else 0
        if pid == os.getpid():
            return True
    return False


def _is_marked(pid: int) -> bool:
    return f"{MARK}={os.getpid()}".encode() in _read(f"/proc/{pid}/environ").split(b"\0")


def _command(pid: int) -> str:
    """Empty for a process that has ended and only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
