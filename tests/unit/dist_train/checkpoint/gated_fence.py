"""A fence that waits in front of each check while a gate is shut. Without torch: the process that writes has none."""

from contextlib import suppress
from pathlib import Path

from dist_train.rundir.lease import Fence


def gate_of(run_dir: Path) -> Path:
    """Shut while it is a pipe that nobody writes into."""
    return run_dir / "gate"


class GatedFence(Fence):
    def check(self) -> None:
        with suppress(FileNotFoundError):
            gate_of(self.run_dir).read_bytes()
        super().check()
