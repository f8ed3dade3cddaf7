"""Saves under strace(1): what they call, and the same with a signal or an error put in the place of one call."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_train.checkpoint.store import CheckpointStore
from dist_train.rundir.lease import Lease
from tests.faults.lives import ROOT, kill, until
from tests.faults.one_save import KEEP

STRACE = shutil.which("strace")
OLD_STEPS, STEP = (10, 20), 30
ATTACH_S = 20.0
_CALL = re.compile(r"^(\w+)\(")
_CHANGES = re.compile(r"^(openat\(.*O_CREAT|p?write|f(data)?sync|rename|unlink|mkdir|rmdir)")


@dataclass(frozen=True)
class Call:
    """The `number`th call of this name in a save, counted from 1."""

    name: str
    number: int
    changes: bool
    """Whether the disk is another one after it."""

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


class Bench:
    """A run directory with two checkpoints, to be copied for each save, and the process that saves."""

    def __init__(self, folder: Path, files: dict[str, bytes], zygote: subprocess.Popen, lease: Lease) -> None:
        self.folder, self.files = folder, files
        self._zygote = zygote
        self.template = folder / "template"
        self._fence = lease.take(self.template)
        store = CheckpointStore(self.template / "checkpoints", KEEP)
        for step in OLD_STEPS:
            store.save(step, {name: bytes([step]) + content for name, content in files.items()}, {})
        self._made = 0

    @property
    def largest(self) -> int:
        """Bytes of the largest file."""
        return max(map(len, self.files.values()))

    def copy(self) -> Path:
        """A fresh run directory."""
        self._made += 1
        return Path(shutil.copytree(self.template, self.folder / f"copy{self._made}"))

    def save(self, run_dir: Path, *strace: str, limit: int | None = None, log: Path | None = None) -> int:
        """Saves step 30 in `run_dir` under strace with these options: 0, an errno, or minus a signal's number."""
        fence = self._fence
        order = {
            "run_dir": str(run_dir),
            "number": fence.number,
            "token": fence.token,
            "step": STEP,
            "files": {name: content.hex() for name, content in self.files.items()},
            "limit": limit,
        }
        self._say(json.dumps(order))
        pid = int(self._hear("stopped"))
        if not strace:
            os.kill(pid, signal.SIGCONT)
            return int(self._hear("ended"))
        command = [str(STRACE), "-qq", "-y", "-s", "0", "-o", str(log or os.devnull), "-p", str(pid), *strace]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
            if not until(lambda: is_traced(pid) or tracer.poll() is not None, ATTACH_S) or tracer.poll() is not None:
                kill([pid, tracer.pid])
                self._hear("ended")
                raise RuntimeError(f"strace could not attach: {tracer.communicate()[1]}")
            os.kill(pid, signal.SIGCONT)
            status = int(self._hear("ended"))
            tracer.wait()
        return status

    def calls(self, run_dir: Path, log: Path) -> list[Call]:
        """Every system call of a save in `run_dir`, in order; the last one is its exit."""
        status = self.save(run_dir, "-e", "trace=all", log=log)
        assert status == 0, f"a save that nothing was done to ended with {status}"
        counts: Counter[str] = Counter()
        calls = []
        for line in log.read_text().splitlines():
            if match := _CALL.match(line):
                counts[match[1]] += 1
                calls.append(Call(match[1], counts[match[1]], changes=_CHANGES.match(line) is not None))
        return calls

    def _say(self, line: str) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(f"{line}\n")
        self._zygote.stdin.flush()

    def _hear(self, word: str) -> str:
        assert self._zygote.stdout is not None
        line = self._zygote.stdout.readline().split()
        assert line and line[0] == word, f"expected {word!r}, heard {line}"
        return line[1]


def is_traced(pid: int) -> bool:
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@contextlib.contextmanager
def bench(folder: Path, files: dict[str, bytes]) -> Iterator[Bench]:
    """In the block, saves can be made and watched."""
    command = [sys.executable, "-m", "tests.faults.one_save"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as zygote:
        try:
            with Lease() as lease:
                yield Bench(folder, files, zygote, lease)
        finally:
            zygote.kill()


def sample_files(content: bytes) -> dict[str, bytes]:
    """Three files, one of them empty but for a few bytes."""
    return {"model.safetensors": content, "optimizer.safetensors": content[::-1] * 2, "state.json": b"{}"}
