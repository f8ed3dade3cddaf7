"""A small worker program for the launcher's tests: what each rank does is said on its command line.

`ranks.py ACTION FOLDER [--gloo] …` accepts the flags that the launcher adds. With --gloo the ranks work together as in
a training, so that the death of one reaches the others; without, they need no torch and notice nothing.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

RANK = int(os.environ["RANK"])


class Stop:
    """What a real worker does about signals: note them, and end well."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.note)
        signal.signal(signal.SIGUSR2, lambda *_: print("save and go on", flush=True))

    def note(self, number: int, frame: object) -> None:
        self.number = number


def train(folder: Path, seconds: float) -> None:
    """Waits for a stop; rank 0 then leaves a state like the real worker's."""
    stop = Stop()
    (folder / f"ready{RANK}").touch()
    until = time.monotonic() + seconds
    while stop.number is None and time.monotonic() < until:
        time.sleep(0.02)
    name = signal.Signals(stop.number).name if stop.number else None
    if RANK == 0:
        state = {"status": "stopped" if name else "done", "signal": name}
        (folder / "state.json").write_text(json.dumps(state))


def stubborn(folder: Path) -> None:
    """Never ends by itself, and has a child that has let go of it."""
    Stop()
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=False).start()
    (folder / f"ready{RANK}").touch()
    time.sleep(600)


def work_together(folder: Path, act: Callable[[], None] | None) -> None:
    """Collectives over gloo, until one rank does something else."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for step in range(10_000):
        if step == 3:
            (folder / f"ready{RANK}").touch()
            if act is not None:
                act()
        dist.all_reduce(torch.ones(4))
        time.sleep(0.01)


def work_alone(folder: Path, act: Callable[[], None] | None) -> None:
    """The same without torch: the other ranks notice nothing and go on."""
    (folder / f"ready{RANK}").touch()
    while not all((folder / f"ready{rank}").exists() for rank in range(int(os.environ["WORLD_SIZE"]))):
        time.sleep(0.02)
    if act is not None:
        act()
    time.sleep(600)


def look_up(labels: list[int], index: int) -> int:
    return labels[index]


def raise_an_index_error() -> None:
    look_up([1, 2, 3], 5)


def say_user_error() -> None:
    from dist_train.errors import ExitCode, UserError

    raise UserError("data.root: no such folder: give another", ExitCode.DATA)


def run_out_of_memory() -> None:
    raise MemoryError("no 4 TB here")


def go_on() -> None:
    return


ACTS = {
    "raise": raise_an_index_error,
    "user-error": say_user_error,
    "segfault": lambda: ctypes.string_at(0),
    "leave-with-3": lambda: sys.exit(3),
    "leave-early": lambda: sys.exit(0),
    "out-of-memory": run_out_of_memory,
    "go-on": go_on,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--gloo", action="store_true")
    parser.add_argument("--resume")
    parser.add_argument("--supervised", action="store_true")
    given = parser.parse_args()
    print(f"hello from rank {RANK}, resume {given.resume}", flush=True)
    if given.action == "environment":
        (given.folder / f"environment{RANK}.json").write_text(json.dumps([dict(os.environ), sys.path, sys.argv]))
    elif given.action == "train":
        train(given.folder, given.seconds)
    elif given.action == "stubborn":
        stubborn(given.folder)
    else:
        work = work_together if given.gloo else work_alone
        work(given.folder, ACTS[given.action] if given.rank == RANK else None)


if __name__ == "__main__":
    main()
