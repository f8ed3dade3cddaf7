"""How long does a start take? dist-train against torchrun on the same script, and our trainer on about the same work.

    python -m benchmarks.launch [--pairs N] [--kills N] [--json]

Three figures. Start: from the command to the end of the first optimizer step on rank 0, and to the end of the last
process, each side in turn; the result is the median of the pairs' ratios. Recovery: from the SIGKILL of a rank to the
next step that had not been done before. Memory: how much the proportional set size (PSS: shared pages divided among
those who share them) of all processes of a launch grows with one more rank.
"""

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import stamps
from benchmarks.surroundings import environment
from launch.processes import descendants, send

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(Path(__file__).with_name("first_step.py"))
CONFIG = str(Path(__file__).with_name("launch.yaml"))
RANKS = (2, 4, 8)
POLL = 0.002
LIMIT = 180.0
TRIES = 10
"""Stock torchrun aborts at its end now and then; such a start is measured again."""
Command = Callable[[Path, int], list[str]]


def torchrun(folder: Path, ranks: int, *more: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, SCRIPT, str(folder / "stamps"), "1", *more]


def run(folder: Path, ranks: int, *more: str) -> list[str]:
    launcher = [
        sys.executable,
        "-m",
        "dist_train.launch",
        "run",
        "--nproc-per-node",
        str(ranks),
        "--run-dir",
        str(folder / "run"),
    ]
    return [*launcher, SCRIPT, str(folder / "stamps"), "1", *more]


def train(folder: Path, ranks: int) -> list[str]:
    launcher = [sys.executable, "-m", "dist_train.launch", "train", CONFIG, "--nproc-per-node", str(ranks)]
    return [*launcher, "--run-dir", str(folder / "run")]


# ---------------------------------------------------------------- start


def start(command: Command, ranks: int) -> tuple[float, float]:
    """Seconds to the end of the first step and to the end of the launch.

    Raises:
        RuntimeError: when it fails over and over.
    """
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory() as name, launched(command(Path(name), ranks)) as (process, begun):
            code = process.wait(LIMIT)
            end = time.perf_counter()
            if code == 0:
                return first_step(Path(name), begun) - begun, end - begun
    raise RuntimeError(f"{command.__name__} on {ranks} ranks failed {TRIES} times")


def first_step(folder: Path, begun: float) -> float:
    """When it ended, on the clock of `begun`."""
    if (folder / "stamps").exists():
        return stamps.read(folder / "stamps")[0]
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    unix = next(row["time"]["unix"] for row in rows if row["kind"] == "train")
    return unix - time.time() + time.perf_counter()


@contextlib.contextmanager
def launched(command: list[str]) -> Iterator[tuple[subprocess.Popen, float]]:
    """The process and when it was started; nothing of it is left at the end of the block."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process, begun
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            send(pid, signal.SIGKILL)
        process.wait()


def compare_starts(pairs: int) -> list[dict[str, Any]]:
    """For each number of ranks, ours over torchrun: the median of the ratios of pairs that ran one after the other."""
    rows = []
    for ranks in RANKS:
        ratios: dict[str, list[tuple[float, float]]] = {"run": [], "train": []}
        for number in range(1, pairs + 1):
            theirs = start(torchrun, ranks)
            for name, command in (("run", run), ("train", train)):
                ours = start(command, ranks)
                ratios[name].append((ours[0] / theirs[0], ours[1] / theirs[1]))
            print(f"{ranks} ranks, pair {number} of {pairs}: {ratios['run'][-1][0]:.2f}", file=sys.stderr)
        for name, found in ratios.items():
            first, end = (statistics.median(values) for values in zip(*found, strict=True))
            rows.append({"ranks": ranks, "command": name, "to_first_step": first, "to_end": end})
    return rows


# ---------------------------------------------------------------- recovery


def recover(kills: int) -> list[float]:
    """Seconds from the SIGKILL of a rank to the next new step, of one run that is killed that often."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        words = ["--max-restarts", str(kills), "train.duration=1000000 steps", "checkpoint.every=5 steps"]
        words += ["tracking.every=1 steps", "eval.every=1000000 steps"]
        with launched([*train(Path(name), 2), *words]):
            metrics, reached = Path(name) / "run" / "metrics.jsonl", 0
            for number in range(1, kills + 1):
                reached = await_step(metrics, reached + 12)
                sessions = Path(name) / "run" / "generations" / str(number) / "ranks"
                victim = json.loads((sessions / f"{number % 2}.json").read_text())["pid"]
                begun = time.perf_counter()
                send(victim, signal.SIGKILL)
                reached = newest_step(metrics)
                reached = await_step(metrics, reached + 1)
                found.append(time.perf_counter() - begun)
    return found


def await_step(metrics: Path, step: int) -> int:
    """Returns the newest step once it is `step` or a later one."""
    deadline = time.monotonic() + LIMIT
    while (newest := newest_step(metrics)) < step:
        if time.monotonic() > deadline:
            raise TimeoutError(f"step {step} did not come")
        time.sleep(POLL)
    return newest


def newest_step(metrics: Path) -> int:
    """Of the complete rows."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            rows = file.read().splitlines(keepends=True)
    except OSError:
        return 0
    for row in reversed(rows):
        with contextlib.suppress(ValueError):
            return int(json.loads(row)["step"])
    return 0


# ---------------------------------------------------------------- memory


def memory_of_a_rank(command: Callable[..., list[str]]) -> float:
    """MB by which the launch grows with each rank from 2 to 4."""
    small, large = (memory(command, ranks) for ranks in (2, 4))
    return (large - small) / 2


def memory(command: Callable[..., list[str]], ranks: int) -> float:
    """MB of all processes of a launch whose ranks wait after their first step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gate = folder / "gate"
        with launched(command(folder, ranks, str(gate))) as (process, _):
            deadline = time.monotonic() + LIMIT
            while not stamps.count(folder / "stamps"):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"{command.__name__} did not get to its first step")
                time.sleep(POLL)
            return sum(pss(pid) for pid in [process.pid, *descendants(process.pid)])


def pss(pid: int) -> float:
    """MB."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(row.split()[1]) / 1e3 for row in rows if row.startswith("Pss:")), 0.0)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=3, help="starts of each side for each number of ranks (default 3)")
    parser.add_argument("--kills", type=int, default=10, help="for the recovery (default 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args(argv)
    starts = compare_starts(args.pairs) if args.pairs else []
    recovery = recover(args.kills) if args.kills else []
    sizes = {"dist-train": memory_of_a_rank(run), "torchrun": memory_of_a_rank(torchrun)}
    if args.json:
        print(json.dumps({"starts": starts, "recovery_s": recovery, "mb_of_a_rank": sizes}, indent=2))
        return 0
    print(f"over torchrun, medians of {args.pairs} pairs")
    for row in starts:
        print(f"  {row['ranks']} ranks, {row['command']:<5}  to the first step {row['to_first_step']:.2f}", end="")
        print(f"  to the end {row['to_end']:.2f}")
    if recovery:
        middle = f"median {statistics.median(recovery):.2f} s, at most {max(recovery):.2f} s"
        print(f"SIGKILL of a rank to the next new step, {len(recovery)} times: {middle}")
    print("  ".join(f"{name}: {size:.0f} MB for one more rank" for name, size in sizes.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
