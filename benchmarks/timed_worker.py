"""A rank of dist-train that notes when each of its steps ended.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.timed_worker TIMES CONFIG [a.b=c …] --run-dir DIR

The training is the one of `python -m dist_train`; only `dist_train.loop.train_step` is called through a clock. From one
end of it to the next lies all that the loop does for a step: loading, metrics, console, agreement on stopping.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_train import loop
from dist_train.control.stop import StopFlag
from dist_train.ranks import Ranks
from dist_train.worker import main


def timed(function: Callable[..., Any], ends: list[float]) -> Callable[..., Any]:
    """`function`, and after each call the time in `ends`, in seconds."""

    def call(*args: Any) -> Any:
        result = function(*args)
        ends.append(time.perf_counter())
        return result

    return call


def _main(times: Path, argv: list[str]) -> int:
    ends: list[float] = []
    loop.train_step = timed(loop.train_step, ends)
    with StopFlag().handling_signals() as flag:
        code = main(argv, flag)
    if Ranks.from_environment().is_first:
        times.write_text(json.dumps(ends))
    return code


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2:]))
