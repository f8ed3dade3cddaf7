"""Runs an example as a rank of torchrun, `python own_loops.py KILLED_AT EXAMPLE STEPS FOLDER`, and may kill it: with
SIGKILL after so many steps of its optimizers, in the last rank of the first generation.
"""

import os
import runpy
import signal
import sys

from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    killed_at, steps = int(sys.argv[1]), 0
    is_last = os.environ.get("RANK") == str(int(os.environ.get("WORLD_SIZE", 1)) - 1)

    def count(*_) -> None:
        nonlocal steps
        steps += 1
        if steps == killed_at and is_last and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    if killed_at:
        register_optimizer_step_post_hook(count)
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
