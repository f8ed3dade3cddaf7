"""One process that wants a run directory; does what its stdin says, a line at a time. See test_lease.py.

python -m tests.unit.dist_train.rundir.lease_program {here|elsewhere} EXPIRY
  take DIR         owner | refused: …
  save STEP        saved | refused: …, of the directory taken last
  stop-at N STEP   the same, but it stops itself (SIGSTOP) right before the N-th time the save touches the file system
  save-on STEP     refused: …, after as many saves from that step on as it was allowed
  check            ours | refused: …
  release          released
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from dist_train.checkpoint.store import CheckpointStore
from dist_train.errors import UserError
from dist_train.rundir.lease import Fence, Lease
from dist_train.rundir.ownership import Owner

TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir")
FILES = {"model.safetensors": b"m" * 5000, "state.json": b"{}"}


class Holder:
    def __init__(self, place: str, expiry: str) -> None:
        self.place, self.expiry = place, float(expiry)
        self.lease: Lease | None = None
        self.fence: Fence | None = None
        self.count = self.last = 0

    def take(self, folder: str) -> str:
        owner = Owner.now()
        if self.place == "elsewhere":
            owner = replace(owner, boot="another machine's", host="elsewhere")
        self.lease = Lease(owner=owner, expiry=self.expiry, renewal=0.05, note=say, lost=lambda: say("lost"))
        self.fence = self.lease.take(Path(folder))
        CheckpointStore(Path(folder) / "checkpoints").remove_unfinished()
        return "owner"

    def save(self, step: str) -> str:
        CheckpointStore(self.fence.run_dir / "checkpoints", fence=self.fence).save(int(step), FILES, {})
        return "saved"

    def stop_at(self, number: str, step: str) -> str:
        sys.addaudithook(self.audit)
        self.count, self.last = 0, int(number)
        return self.save(step)

    def save_on(self, step: str) -> str:
        say("saving")
        for number in range(int(step), int(step) + 1_000_000):
            self.save(str(number))
            CheckpointStore(self.fence.run_dir / "checkpoints", fence=self.fence).retain(None)
        raise AssertionError("nobody has taken over")

    def audit(self, event: str, arguments: tuple) -> None:
        if event in TOUCHES and "checkpoints" in str(arguments[0]):
            self.count += 1
            if self.count == self.last:
                say("stopping")
                os.kill(os.getpid(), signal.SIGSTOP)

    def check(self) -> str:
        self.fence.check()
        return "ours"

    def release(self) -> str:
        self.lease.release()
        return "released"


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # in one piece: two threads speak


def main() -> None:
    holder = Holder(*sys.argv[1:])
    say("ready")
    for line in sys.stdin:
        command, *arguments = line.split()
        try:
            say(getattr(holder, command.replace("-", "_"))(*arguments))
        except UserError as error:
            say(f"refused: {error} (exit {int(error.code)})")


if __name__ == "__main__":
    main()
