"""What does measuring where a step's time goes cost? The calls of one rank alone, in processor time.

    python -m benchmarks.timing [--microbatches N] [--intervals N]

Prints microseconds of a step, reading an interval of ten steps included. `benchmarks.step_overhead --tree CHECKOUT`
compares whole steps with those of another version.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from dist_train.timing import Timing

INTERVAL = 10


def seconds(microbatches: int, intervals: int) -> float:
    """Processor time of a step, the median over the intervals."""
    timing, took = Timing(torch.device("cpu")), []
    for _ in range(intervals):
        begun = time.thread_time()
        for _ in range(INTERVAL):
            _step(timing, microbatches)
        timing.table(0, 2)
        took.append((time.thread_time() - begun) / INTERVAL)
    return statistics.median(took)


def _step(timing: Timing, microbatches: int) -> None:
    """The calls of loader, parallel and trainer, as a step of the training makes them."""
    for _ in range(microbatches):
        for phase in ("other", "input"):
            timing.lap(phase)
        timing.add_loaded((0.0, 0.0, 0.0), 8)
        timing.lap("transfer")
    for number in range(microbatches):
        timing.lap("forward")
        timing.lap("backward")
        if number == microbatches - 1:
            timing.lap("exchange")
    for phase in ("exchange", "optimizer"):
        timing.lap(phase)
    timing.end_step(microbatches)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timing", description=__doc__.split("\n")[0])
    parser.add_argument("--microbatches", type=int, default=4, help="of a rank in each step (default 4)")
    parser.add_argument("--intervals", type=int, default=200, help=f"of {INTERVAL} steps (default 200)")
    args = parser.parse_args(argv)
    print(f"{1e6 * seconds(args.microbatches, args.intervals):.0f} us a step of {args.microbatches} microbatches")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
