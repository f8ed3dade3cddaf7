"""Ends of programs that know nothing of us: what is on disk after `dist-train run` is what torchrun leaves there."""

import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults.tally import Order, Tally

SCRIPT = Path(__file__).with_name("ending_script.py")
ROOT = Path(__file__).parents[2]
AT_ONCE = 2
LEFT_S = 20.0
"""For what a program has left behind."""

SOFT = (
    *("return", "exit", "exception-in-thread", "exit-in-thread", "thread-hook", "exception-at-exit", "exit-at-exit"),
    *("exception-in-fork", "exit-in-fork", "at-once-in-fork", "multiprocessing", "another-program"),
)
"""Exit code 0: nothing makes the other ranks end."""
HARD = (
    *("exit-3", "exit-text", "exit-subclass", "exit-at-once", "exception", "chained", "recursion", "interrupt"),
    *("finally-slow", "broken-hook", "kill", "terminate", "abort", "user-signal", "kill-in-thread", "kill-at-exit"),
)
THINGS = (
    *("text", "rows", "packed", "packed_text", "archive", "tee", "tee_of_errors", "generator", "database", "shelf"),
    *("cycle", "finalizer", "pipe", "connection", "hooked", "signals", "c_stream", "late_thread", "at_exit"),
    *("slow_exit", "main_module"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One program and its end."""

    number: int
    ranks: int
    guilty: int
    """Which rank ends so; -1: all do."""
    end: str
    peers: str
    torch: str
    things: tuple[str, ...]
    start: str

    @classmethod
    def draw(cls, number: int, dice: random.Random) -> "Case":
        ranks = dice.choice((1, 2, 2))
        end = dice.choice(SOFT + HARD)
        guilty = dice.randrange(-1 if end in SOFT else 0, ranks)
        peers = dice.choice(("wait", "save")) if end in HARD else "return"
        torch = dice.choice(("none", "import", "gloo"))
        # A Python that dies of an interrupt kills itself, before its C library has written what it holds.
        known = [thing for thing in THINGS if (end, thing) != ("interrupt", "c_stream")]
        things = tuple(dice.sample(known, dice.randrange(2, 7)))
        start = dice.choice(("preload", "preload", "exec"))
        return cls(
            number=number, ranks=ranks, guilty=guilty, end=end, peers=peers, torch=torch, things=things, start=start
        )

    def words(self, folder: Path) -> list[str]:
        script = [str(SCRIPT), str(folder), str(self.guilty), self.end, self.peers, self.torch, *self.things]
        return ["--nproc-per-node", str(self.ranks), *script]


ABORTED = b"terminate called without an active exception"
"""What torch says now and then where it aborts at the end of a script that has done its work (pytorch/pytorch#190489).
The peer may, and then there is nothing to compare; we may not."""


def left_by(case: Case, folder: Path, *launcher: str) -> dict[str, bytes] | None:
    """What the program has left on disk, by name; None where torch has aborted it at its end."""
    for rank in range(case.ranks):
        (folder / f"rank{rank}").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", *launcher, *case.words(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=180)
    wait_for_children(folder)
    if ABORTED in done.stderr:
        return None
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("rank*/**/*"))}
    # Addresses are chance; the frames that are below the script's count for the limit of a recursion.
    return {
        name: re.sub(rb"0x[0-9a-f]+|repeated \d+ more", b"", content.replace(bytes(folder), b"FOLDER"))
        for name, content in files.items()
    }


def wait_for_children(folder: Path) -> None:
    """Until nothing that the program has started works in its folder; the torchrun leaves it running."""
    until = time.monotonic() + LEFT_S
    while time.monotonic() < until and any(works_in(folder)):
        time.sleep(0.05)


def works_in(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [process.name] if os.readlink(process / "cwd").startswith(str(folder / "rank")) else []
        except OSError:
            continue
    return found


def difference(expected: dict[str, bytes], found: dict[str, bytes]) -> str | None:
    """The first file that is not the same."""
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            return f"{name}: torchrun leaves {_shown(expected.get(name))}, dist-train {_shown(found.get(name))}"
    return None


def _shown(content: bytes | None) -> str:
    return "nothing" if content is None else f"{len(content)} bytes (… {content[-300:]!r})"


def campaign(order: Order) -> Tally:
    tally = Tally(campaign="endings", seed=order.seed)
    cases = [Case.draw(number, order.dice("endings", number)) for number in range(order.count) if order.wants(number)]

    def compare(case: Case) -> tuple[Case, str | None, int]:
        folder = order.folder / str(case.number)
        expected = left_by(case, folder / "expected", "torch.distributed.run", "--standalone")
        found = left_by(case, folder / "found", "launch", "run", "--start", case.start, "--run-dir", "run")
        if found is None:
            return case, "torch has aborted a rank at its end", 0
        return (case, None, 0) if expected is None else (case, difference(expected, found), len(expected))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for case, wrong, files in pool.map(compare, cases):
            tally.injections += 1
            tally.facts["files"] = int(str(tally.facts.get("files", 0))) + files
            if wrong:
                tally.lose(case.number, f"{case}: {wrong}", unequal=True)
    return tally
