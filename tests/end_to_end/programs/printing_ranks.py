"""Ranks that print in every way there is: `printing_ranks.py ACTION FOLDER`. No torch."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def wait_for_all(folder: Path, name: str) -> None:
    (folder / f"{name}{RANK}").touch()
    for rank in range(RANKS):
        wait_for(folder / f"{name}{rank}")


def print_natively() -> None:
    """From C, from a child process, and to the descriptor itself."""
    libc = ctypes.CDLL(None)
    libc.printf(b"printf of rank %d\n", RANK)
    libc.fflush(None)
    subprocess.run(["echo", f"child of rank {RANK}"], check=True)
    os.write(2, b"descriptor of rank %d\n" % RANK)


def draw_bar(steps: int, seconds: float = 0.0) -> None:
    """As tqdm does: each state over the one before."""
    for step in range(1, steps + 1):
        sys.stderr.write(f"\r{step:3}/{steps} of rank {RANK} |{'█' * (step * 10 // steps):<10}|")
        sys.stderr.flush()
        time.sleep(seconds)
    sys.stderr.write("\n")


def begin_a_line(folder: Path) -> None:
    """What stands behind the first words is long in coming."""
    print(f"line of rank {RANK}, begun", end="", flush=True)
    print("meanwhile", file=sys.stderr, flush=True)
    wait_for(folder / "end")
    print(" and ended")


def on_a_terminal(folder: Path) -> None:
    """Rank 0 draws a bar as wide as its terminal says, again when that is resized; rank 1 prints lines once the test
    has seen half of it, since a terminal may deliver later than a pipe."""
    terminals = [stream.isatty() for stream in (sys.stdout, sys.stderr)]
    if RANK == 0:
        resized: list[int] = []
        signal.signal(signal.SIGWINCH, lambda *_: resized.append(1))
        print(f"terminals {terminals} size {tuple(os.get_terminal_size(1))}")
        print_natively()
        wait_for_all(folder, "begun")
        while not resized:
            time.sleep(0.02)
        print(f"resized to {tuple(os.get_terminal_size(2))}")
        sys.stderr.write("\rhalf way |█████     |")
        wait_for(folder / "said1")
        draw_bar(50)
    else:
        print(f"terminals of rank 1 {terminals}")
        print_natively()
        wait_for_all(folder, "begun")
        wait_for(folder / "half")
        for number in range(20):
            print(f"line {number} of rank 1")
        (folder / "said1").touch()
    wait_for_all(folder, "done")


def die(folder: Path) -> None:
    """Every rank prints many lines in pieces, and then ends at once, each in a way that runs no Python code."""
    for number in range(300):
        os.write(1, f"<rank {RANK} ".encode())
        os.write(1, f"line {number}>\n".encode())
    draw_bar(100)
    os.write(1, b"y" * 50_000 + b"\n")
    print("last words of", f"rank {RANK}", end="")
    wait_for_all(folder, "printed")
    if RANK == 0:
        os._exit(3)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ctypes.string_at(0)


def flood(folder: Path) -> None:
    """More than any pipe takes, on both streams."""
    for number in range(60_000):
        print(f"{number:06} {'x' * 90}", file=(sys.stdout, sys.stderr)[number % 2])
    draw_bar(3)
    print("the last line")


def flood_without_end(folder: Path) -> None:
    while True:
        flood(folder)
        (folder / f"flooded{RANK}").touch()


ACTIONS = {
    "begin-a-line": begin_a_line,
    "on-a-terminal": on_a_terminal,
    "die": die,
    "flood": flood,
    "flood-without-end": flood_without_end,
}

if __name__ == "__main__":
    action = ACTIONS[sys.argv[1]]
    action(Path(sys.argv[2]))
