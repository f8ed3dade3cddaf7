"""A rank of dist-train that tells when each of its steps ended.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.timed_worker STAMPS CONFIG [a.b=c …] --run-dir DIR

The training is the one of `python -m dist_train`, with one call added after `dist_train.loop.train_step`. From one such
call to the next lies all that the loop does for a step: loading, metrics, console, agreement on stopping.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.stamps import Writer
from dist_train import loop
from dist_train.control.stop import StopFlag
from dist_train.parallel.ranks import Ranks
from dist_train.worker import main


def followed(function: Callable[..., Any], by: Callable[[], None]) -> Callable[..., Any]:
    """`function`, and after each call of it one of `by`."""

    def call(*args: Any) -> Any:
        result = function(*args)
        by()
        return result

    return call


def _main(stamps: Path, argv: list[str]) -> int:
    if Ranks.from_environment().is_first:
        loop.train_step = followed(loop.train_step, Writer(stamps))
    with StopFlag().handling_signals() as flag:
        return main(argv, flag)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2:]))
