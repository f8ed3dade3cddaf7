"""A manager over a small state, and a grip on the process that writes for it, for the tests of both."""

import json
import os
import select
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch

from dist_train.checkpoint.manager import CheckpointManager
from dist_train.checkpoint.state import Snapshot
from dist_train.checkpoint.store import CheckpointStore
from dist_train.rundir.lease import Fence
from dist_train.rundir.ownership import Owner, claim_path
from launch.processes import descendants
from tests.unit.dist_train.checkpoint.gated_fence import GatedFence, gate_of

PATIENCE = 20.0


class Saver:
    """A manager over one tensor, `weights`, and what it has told."""

    def __init__(self, folder: Path, fence: Fence | None = None, **options) -> None:
        self.weights = torch.arange(10_000, dtype=torch.float32)
        self.momentum = torch.zeros(10_000)
        self.notes: list[str] = []
        self.saved: list[int] = []
        self.store = CheckpointStore(folder, keep=2, fence=fence)
        arguments = {"global_batch": 4}, self.notes.append, lambda state: self.saved.append(state.step)
        self.manager = CheckpointManager(self.store, self._capture, *arguments, **options)

    def _capture(self, progress) -> Snapshot:
        other = {"progress": {"step": progress.step}}
        return Snapshot(model={"w": self.weights}, optimizer={"w/momentum": self.momentum}, ema=None, other=other)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.store.folder.iterdir())


def writers() -> list[int]:
    """Pids of the processes below this one that write checkpoints."""
    return [pid for pid in descendants(os.getpid()) if b"checkpoint.writer" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def gone(pid: int):
    """Waits at the end of the block until the process is."""
    process = os.pidfd_open(pid)
    try:
        yield
        assert select.select([process], [], [], PATIENCE)[0], f"process {pid} still lives"
    finally:
        os.close(process)


class Gate:
    """A fence whose checks wait while it is shut. Open at first."""

    def __init__(self, run_dir: Path) -> None:
        owner = Owner.now()
        claim = claim_path(run_dir, 1)
        claim.parent.mkdir(parents=True)
        claim.write_bytes(json.dumps(asdict(owner)).encode() + b"\n0\n")
        self._gate = gate_of(run_dir)
        self._held: BinaryIO | None = None
        self.fence = GatedFence(run_dir, 1, owner.token)

    def shut(self) -> None:
        new = self._gate.with_name("new")
        os.mkfifo(new)
        new.replace(self._gate)

    def open(self) -> None:
        """Whoever waits is let through, and whoever comes."""
        new = self._gate.with_name("new")
        new.write_bytes(b"go on")
        new.replace(self._gate)
        if self._held is not None:
            with suppress(BrokenPipeError):  # it was killed
                self._held.write(b"go on")
            self._held.close()

    def hold_before_the_rename(self, folder: Path) -> None:
        """Shut, returns when a save has written everything into `folder` and waits to be let through."""
        while self._held is None:
            until(self._somebody_waits)
            if not any(folder.glob(".tmp-*/manifest.json")):
                self.shut()  # for the next check, before this one goes on
                self._waiting.write(b"go on")
                self._waiting.close()
            else:
                self._held = self._waiting

    def _somebody_waits(self) -> bool:
        try:
            descriptor = os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        self._waiting = os.fdopen(descriptor, "wb", buffering=0)
        return True


def until(done) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)
