"""A plain script that knows nothing of the launcher: `script.py WAY RANK FOLDER`. One rank fails in one way.

The ranks hold a connection to each other, by plain sockets or, for ways that need torch, by gloo: the death of one is
noticed by the others at once, as in a training.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path

WAY, GUILTY, FOLDER = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Ring:
    """Every rank listens on a socket of the folder and is connected to all others."""

    def __init__(self) -> None:
        os.chdir(FOLDER)  # a socket's name may have no more than 107 bytes
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"s{RANK}.new")
        server.listen(RANKS)
        os.rename(f"s{RANK}.new", f"s{RANK}")
        self.peers = []
        for _ in range(RANK):
            self.peers.append(server.accept()[0])
        for rank in range(RANK + 1, RANKS):
            peer = socket.socket(socket.AF_UNIX)
            while True:
                try:
                    peer.connect(f"s{rank}")
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    time.sleep(0.01)
            self.peers.append(peer)

    def exchange(self) -> None:
        for peer in self.peers:
            peer.sendall(b".")
        for peer in self.peers:
            if not peer.recv(1):
                raise ConnectionResetError("Connection closed by peer")


def look_up(labels: list, index: int) -> object:
    return labels[index]


def sleep_then_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def allocate() -> None:
    limit = 300 << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    bytearray(1 << 30)


def eat() -> None:
    held = []
    while True:
        held.append(b"x" * (20 << 20))


def have_the_parent_killed() -> None:
    """The parent is the fork server."""
    Path(f"/proc/{os.getppid()}/oom_score_adj").write_text("1000")
    eat()


def fill_shared_memory() -> None:
    import torch
    from torch.utils.data import DataLoader

    class Large(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> object:
            return torch.ones(4 << 20)

    list(DataLoader(Large(), batch_size=2, num_workers=1))


def open_many() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = [open("/dev/null") for _ in range(1000)]  # noqa: SIM115
    print(len(held))


def fill_disk() -> None:
    with open("/dev/full", "w") as full:
        full.write("x" * 100_000)


def use_taken_port() -> None:
    first = socket.create_server(("127.0.0.1", 0))
    socket.create_server(first.getsockname())


def raise_later() -> None:
    try:
        look_up([], 5)
    finally:
        time.sleep(0.5)  # the others have gone long before this one ends


def import_missing() -> None:
    import no_such_module_at_all  # noqa: F401


def bad_syntax() -> None:
    path = FOLDER / "broken_part.py"
    path.write_text("def f(:\n")
    sys.path.insert(0, str(FOLDER))
    import broken_part  # noqa: F401


def abort_in_thread() -> None:
    """As a native thread would: the Python side only waits."""
    thread = threading.Thread(target=os.abort)
    thread.start()
    thread.join()


def oom_on_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def allocate_in_torch() -> None:
    import torch

    torch.empty(10**15)


def load(kind: str) -> None:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Birds(Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> object:
            if kind == "collate":
                return torch.zeros(index + 1)
            if index == 5:
                {"raise": lambda: look_up([], 5), "segfault": lambda: ctypes.string_at(0), "kill": sleep_then_kill,
                 "abort": os.abort, "bus": lambda: os.kill(os.getpid(), signal.SIGBUS)}[kind]()  # fmt: skip
            return torch.zeros(1)

    list(DataLoader(Birds(), batch_size=2, num_workers=1))


ACTS = {
    "raise": lambda: look_up([1, 2, 3], 5),
    "raise-then-linger": raise_later,
    "exit-3": lambda: sys.exit(3),
    "exit-text": lambda: sys.exit("bad label in birds.csv"),
    "os-exit-7": lambda: os._exit(7),
    "exit-0": lambda: sys.exit(0),
    "os-exit-0": lambda: os._exit(0),
    "abort": os.abort,
    "abort-in-thread": abort_in_thread,
    "segfault": lambda: ctypes.string_at(0),
    "sigfpe": lambda: os.kill(os.getpid(), signal.SIGFPE),
    "sigbus": lambda: os.kill(os.getpid(), signal.SIGBUS),
    "sigill": lambda: os.kill(os.getpid(), signal.SIGILL),
    "sigkill": sleep_then_kill,
    "import-error": import_missing,
    "syntax-error": bad_syntax,
    "memory-error": allocate,
    "recursion": lambda: ACTS["recursion"](),
    "open-files": open_many,
    "no-space": fill_disk,
    "port-taken": use_taken_port,
    "assertion": lambda: (_ for _ in ()).throw(AssertionError("labels and images differ in number")),
    "gpu-memory": oom_on_gpu,
    "torch-memory": allocate_in_torch,
    "dataset": lambda: load("raise"),
    "collate": lambda: load("collate"),
    "worker-segfault": lambda: load("segfault"),
    "worker-abort": lambda: load("abort"),
    "worker-killed": lambda: load("kill"),
    "worker-bus": lambda: load("bus"),
    "eat": eat,
    "eat-for-two": have_the_parent_killed,
    "shared-memory": fill_shared_memory,
    "gloo-raise": lambda: look_up([], 5),
    "gloo-sigkill": sleep_then_kill,
    "mismatch": None,
}


def over_gloo() -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for step in range(1000):
        if step == 3 and RANK == GUILTY and WAY != "mismatch":
            ACTS[WAY]()
        dist.all_reduce(torch.ones(400_000 if step == 3 and RANK == GUILTY else 4))


def main() -> None:
    if WAY in ("mismatch", "gloo-raise", "gloo-sigkill"):
        over_gloo()
        return
    ring = Ring()
    for step in range(10_000):
        if step == 3 and RANK == GUILTY:
            ACTS[WAY]()
        ring.exchange()
        time.sleep(0.01)


main()
