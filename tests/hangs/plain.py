"""A script that knows nothing of us: `plain.py ACTION FOLDER VICTIM`. Steps of all_reduce, until one rank is stuck."""

import argparse
import ctypes
import itertools
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

RANK = int(os.environ["RANK"])
READY_AT = 5


class Numbers(Dataset):
    """Ten thousand numbers; the chosen action happens while one of them is read."""

    def __init__(self, act, victim: bool) -> None:
        self.act, self.victim = act, victim

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == READY_AT and self.victim:
            self.act()
        return torch.ones(4) * index


def ready(folder: Path) -> None:
    (folder / "ready").write_text(str(os.getpid()))


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_in_dataset() -> None:
    time.sleep(600)  # LINE sleep loader


def hold_the_gil() -> None:
    """In C code, at a lock that is never given back: C's sleep() ends at any signal, as that which asks for stacks."""
    lock, c = ctypes.create_string_buffer(64), ctypes.PyDLL(None)
    c.pthread_mutex_lock(lock)
    c.pthread_mutex_lock(lock)  # LINE gil


def take_a_lock() -> None:
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire()  # LINE lock


def spin() -> None:
    all(True for _ in itertools.count())  # LINE spin


ACTS = {
    "stop": stop_itself,
    "sleep": sleep_in_dataset,
    "loader": sleep_in_dataset,
    "thread": sleep_in_dataset,
    "gil": hold_the_gil,
    "lock": take_a_lock,
    "spin": spin,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action")
    parser.add_argument("folder", type=Path)
    parser.add_argument("victim", type=int)
    given, _ = parser.parse_known_args()
    victim = given.victim == RANK

    def act() -> None:
        ready(given.folder)
        ACTS[given.action]()

    dist.init_process_group("gloo")
    if given.action == "skip":
        skip_a_collective(given.folder, victim)
    workers = int(given.action == "loader")
    data = Numbers(act, victim and given.action in ACTS)
    for number, _batch in enumerate(DataLoader(data, batch_size=1, num_workers=workers)):
        dist.all_reduce(torch.ones(4))
        if given.action == "symmetric" and number == READY_AT:
            if RANK == 0:
                ready(given.folder)
            time.sleep(600)  # LINE symmetric
        if given.action == "evaluate" and number == READY_AT:
            evaluate_on_rank_0(given.folder)
            return
        time.sleep(0.02)


def skip_a_collective(folder: Path, victim: bool) -> None:
    for step in range(10):
        if step == 9 and victim:
            ready(folder)
            continue
        dist.all_reduce(torch.ones(4))  # LINE others
    dist.barrier()  # LINE skip


def evaluate_on_rank_0(folder: Path) -> None:
    """Long, while the others wait; the figures of an evaluation take a processor's time."""
    if RANK == 0:
        until = time.monotonic() + float(os.environ["EVALUATION_SECONDS"])
        while time.monotonic() < until:
            torch.ones(200, 200) @ torch.ones(200, 200)
    dist.barrier()
    ready(folder)


if __name__ == "__main__":
    main()
