"""A small worker program for the launcher's tests: what each rank does is said on its command line.

`ranks.py ACTION [ARGUMENT …]` accepts the flags that the launcher adds. Every rank joins the process group first, unless
the action is one that needs no torch.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
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


def all_reduce_for_ever(act: "dict[int, object]", folder: Path) -> None:
    """Collectives over gloo, until rank 1 does something else."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for step in range(10_000):
        if step == 3 and RANK in act:
            (folder / f"ready{RANK}").touch()
            act[RANK]()  # type: ignore[operator]
        dist.all_reduce(torch.ones(4))
        time.sleep(0.01)


def look_up(labels: list[int], index: int) -> int:
    return labels[index]


def raise_an_index_error() -> None:
    look_up([1, 2, 3], 5)


def say_user_error() -> None:
    from dist_train.config.errors import ExitCode, UserError

    raise UserError("data.root: no such folder: give another", ExitCode.DATA)


def sleep_long() -> None:
    time.sleep(600)


ACTS = {
    "raise": raise_an_index_error,
    "user-error": say_user_error,
    "segfault": lambda: ctypes.string_at(0),
    "leave-with-3": lambda: sys.exit(3),
    "leave-early": lambda: os._exit(0) if len(sys.argv) < 0 else sys.exit(0),
    "out-of-memory": lambda: (_ for _ in ()).throw(MemoryError("no 4 TB here")),
    "sleep": sleep_long,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rank", type=int, default=1)
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
        all_reduce_for_ever({given.rank: ACTS[given.action]}, given.folder)


if __name__ == "__main__":
    main()
