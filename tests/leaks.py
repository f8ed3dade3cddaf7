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
    """A snapshot of what a test found."""

    processes: frozenset[int]
    threads: frozenset[threading.Thread]
    environment: dict[str, str]
    folder: str

    @classmethod
    def now(cls) -> "Surroundings":
        return cls(frozenset(_processes()), frozenset(threading.enumerate()), dict(os.environ), os.getcwd())

    def violations(self) -> list[str]:
        """One line for everything that is different now. Environment and folder are put back."""
        return [*self._new_processes(), *self._new_threads(), *self._changed_variables(), *self._changed_folder()]

    def _new_processes(self) -> list[str]:
        deadline = time.monotonic() + PATIENCE
        while left := _processes().keys() - self.processes:
            if time.monotonic() > deadline:
                return [f"process {pid} is still alive: {_processes().get(pid, '')}" for pid in sorted(left)]
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


def _processes() -> dict[int, str]:
    """Command lines of the living processes that this one has started, by pid, however far they have moved away."""
    found = _look()
    parents = {pid: parent for pid, (parent, _) in found.items()}
    ours = {pid for pid, (_, identity) in found.items() if _descends(pid, parents) or _is_marked(pid, identity)}
    return {pid: command for pid in ours - _helpers() if (command := _command(pid))}


def _helpers() -> set[int]:
    """The servers that multiprocessing and fixtures keep for the life of this process."""
    from multiprocessing import forkserver, resource_tracker

    pids = {resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid}  # type: ignore[attr-defined]
    return {pid for pid in pids if pid} | SERVERS


def _look() -> dict[int, tuple[int, bytes]]:
    """The parent of every process but this one, and its program's name with its time of start: together with the pid
    they tell it from others. (/proc/PID/task/TID/children may leave out some while others end.)"""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            stat = _read(f"/proc/{name}/stat")
            if stat:
                program, _, rest = stat.rpartition(b")")
                fields = rest.split(maxsplit=20)
                found[int(name)] = (int(fields[1]), program + fields[19])
    return found


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


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
    return pid == os.getpid()


_UNMARKED: set[tuple[int, bytes]] = set()
"""Processes that are nobody's of ours. Two looks a test at every environment were a fiftieth of the suite's time."""


def _is_marked(pid: int, identity: bytes) -> bool:
    if (pid, identity) in _UNMARKED:
        return False
    environment = _read(f"/proc/{pid}/environ")
    is_marked = f"{MARK}={os.getpid()}".encode() in environment.split(b"\0")
    if environment and not is_marked:
        _UNMARKED.add((pid, identity))
    return is_marked


def _command(pid: int) -> str:
    """Empty for a process that has ended and only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
