"""Two programs measured in turn: what else the machine does meanwhile falls on both, and the ratios stay comparable."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Command = Callable[[Path], list[str]]
"""From the file for the times to torchrun's arguments: `-m MODULE …`."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One run of one side, without its first steps.

    Attributes:
        step_s: median time from the end of one step to the end of the next, on rank 0, in seconds.
        samples_per_s: over all measured steps together, so it also has what only some steps do.
    """

    step_s: float
    samples_per_s: float

    @classmethod
    def of(cls, ends: Sequence[float], *, warm_up: int, global_batch: int) -> "Speed":
        """`ends`: when each step ended, in seconds; the first `warm_up` are left out."""
        measured = ends[warm_up:]
        steps = [after - before for before, after in zip(measured, measured[1:], strict=False)]
        if not steps:
            raise ValueError(f"{len(ends)} steps leave none to measure after {warm_up} to warm up")
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
        return f"{self.median:.3f}  ({self.low:.3f} to {self.high:.3f})"


def run_pairs(
    ours: Command, plain: Command, *, pairs: int, ranks: int, warm_up: int, global_batch: int
) -> list[tuple[Speed, Speed]]:
    """(ours, plain) of each pair. Which of the two goes first changes from pair to pair."""
    done = []
    for number in range(pairs):
        order = (ours, plain) if number % 2 == 0 else (plain, ours)
        ends = {id(command): run(command, ranks) for command in order}
        speeds = [Speed.of(ends[id(side)], warm_up=warm_up, global_batch=global_batch) for side in (ours, plain)]
        done.append((speeds[0], speeds[1]))
        step_times = " against ".join(f"{1e3 * speed.step_s:.2f} ms" for speed in speeds)
        print(f"  pair {number + 1}/{pairs}: {step_times} a step", file=sys.stderr)
    return done


def run(command: Command, ranks: int) -> list[float]:
    """Runs one side under torchrun, on `ranks` ranks of one thread each; when each step ended, in seconds.

    Raises:
        RuntimeError: with the end of what it said, when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="dist-train-bench-") as folder:
        times = Path(folder) / "times.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        result = subprocess.run(
            [*launch, *command(times)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command(times))} ended with {result.returncode}:\n{result.stderr[-3000:]}")
        return json.loads(times.read_text())
