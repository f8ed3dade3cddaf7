"""Two programs measured in turn, so that what else the machine does meanwhile falls on both alike.

The two of a pair run at the same time, but one of them computes and the other is held by SIGSTOP; they change places
every second or so. Every pair is started anew, because how fast a process is also depends on where its memory lies.
"""

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import stamps
from benchmarks.surroundings import environment
from launch.processes import descendants, send

ROOT = Path(__file__).resolve().parents[1]
POLL = 0.002
"""Seconds between two looks at the number of steps."""
Command = Callable[[Path], list[str]]
"""From an empty folder, in which `stamps` is to be written, to torchrun's last arguments: `-m MODULE …`."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One side of a pair.

    Attributes:
        step_s: median time from the end of one step to the end of the next, on rank 0, in seconds.
        samples_per_s: over all of these steps together, so it also has what only some steps do.
    """

    step_s: float
    samples_per_s: float

    @classmethod
    def of(cls, ends: Sequence[float], *, global_batch: int) -> "Speed":
        """`ends`: when consecutive steps ended, in seconds."""
        steps = [after - before for before, after in zip(ends, ends[1:], strict=False)]
        return cls(step_s=statistics.median(steps), samples_per_s=global_batch * len(steps) / sum(steps))


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Of the pairs' ratios, the median and the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Ratio":
        return cls(median=statistics.median(ratios), low=min(ratios), high=max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The slices of one pair of programs: ours and theirs, alternately."""

    slices: tuple[tuple[Speed, Speed], ...]

    def ratio(self, quantity: str) -> float:
        """Ours divided by theirs: the median over the slices, of `step_s` or `samples_per_s`."""
        return statistics.median(getattr(ours, quantity) / getattr(plain, quantity) for ours, plain in self.slices)

    def median(self, side: int, quantity: str) -> float:
        """Of ours (0) or theirs (1)."""
        return statistics.median(getattr(both[side], quantity) for both in self.slices)


class Side:
    """One program under torchrun, on `ranks` ranks of one thread each. A context manager: its end is the program's."""

    def __init__(self, command: Command, ranks: int, root: Path = ROOT) -> None:
        self._command, self._ranks, self._root = command, ranks, root

    def __enter__(self) -> "Side":
        self._folder = tempfile.TemporaryDirectory(prefix="dist-train-bench-")
        folder = Path(self._folder.name)
        self._stamps, self._log = folder / "stamps", folder / "log"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self._ranks)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*torchrun, *self._command(folder)],
                cwd=self._root,
                env=environment(),
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self._process.pid, *descendants(self._process.pid)]:
            send(pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def run(self, steps: int) -> list[float]:
        """Lets it go on for `steps` whole steps: when the one before them and each of them ended.

        Raises:
            RuntimeError: with the end of what it said, when it ends meanwhile.
        """
        before = stamps.count(self._stamps)
        self._tell_ranks(signal.SIGCONT)
        while stamps.count(self._stamps) < before + steps + 1:
            if self._process.poll() is not None:
                raise RuntimeError(f"ended with {self._process.returncode}:\n{self._log.read_text()[-3000:]}")
            time.sleep(POLL)
        self._tell_ranks(signal.SIGSTOP)
        return stamps.read(self._stamps)[before : before + steps + 1]

    def _tell_ranks(self, number: int) -> None:
        for pid in descendants(self._process.pid):
            send(pid, number)


def run_pair(
    ours: Command,
    plain: Command,
    *,
    slices: int,
    steps: int,
    ranks: int,
    warm_up: int,
    global_batch: int,
    other_root: Path | None = None,
) -> Pair:
    """Measures `slices` times `steps` steps of either side. Which of the two goes first changes from slice to slice.

    Args:
        other_root: the checkout in which the second side runs, if it is another one.
    """
    done = []
    with Side(ours, ranks) as first, Side(plain, ranks, other_root or ROOT) as second:
        sides = (first, second)
        for side in sides:
            side.run(warm_up)
        for number in range(slices):
            speeds = {
                side: Speed.of(side.run(steps), global_batch=global_batch)
                for side in (sides if number % 2 == 0 else sides[::-1])
            }
            done.append((speeds[first], speeds[second]))
    return Pair(slices=tuple(done))
