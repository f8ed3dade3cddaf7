"""How fast is dist-train beside the launchers that people use, on the same work, as whole commands?

    pip install accelerate lightning
    python -m benchmarks.peers DATA [--job images|photos|text|kill] [--rounds N] [--peers plain,accelerate,lightning]
        [--best]

2 ranks of one thread each on the CPU; the same network in the same memory layout and precision, whose size is compared;
an evaluation and a checkpoint after each epoch. DATA is a folder with `train/CLASS/*.jpg` and `eval/CLASS/*.jpg`, or
for `text` a file, tinyshakespeare's.

- `images`: files of 32 pixels, random crop and flip, 2 epochs.
- `photos`: random resized crops of 64 pixels, 3 epochs.
- `text`: a GPT of nanoGPT's style, character by character, 1,000 steps of 12 windows. Which character has which number
  is settled before, as nanoGPT's prepare.py does it.
- `kill`: `images` with 4 epochs, once undisturbed and once with SIGKILL to rank 1 in the middle of the third, as soon
  as rank 0 has told of that step. dist-train, and torchrun for the plain script and for Accelerate, start the ranks
  again by themselves (--max-restarts). A command that ends before the training is done, as Lightning's, is given again
  at once. Each goes on from what it has saved after the second epoch.

First every peer finds its own best number of loading processes (0, 1, 2), or is given it by --loading. With --best,
each side, ours too, also finds its own fastest precision (fp32, bf16) and memory format. Then rounds of all of them in
turn. The figures are medians over the rounds. In brackets is dist-train's divided by the peer's, of each round by
itself. dist-train's cache of decoded images is dropped before each command.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers import events, limits
from benchmarks.peers.jobs import JOBS, OURS, RANKS, SCRIPTS, Job, Settings, command, environment, write_tokens
from launch.processes import descendants, send

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S, POLL_S = 900.0, 0.05
WORKERS = (0, 1, 2)
GIVEN = 3
"""So often at the most is a command given whose training does not go on by itself after the kill."""
UNITS = {"step": (1e3, "ms"), "accuracy": (100, "%"), "again": (1, "samples"), "starts": (1, "")}
"""Of a figure, where it is not in seconds."""
ALIKE = ("accuracy", "starts")
"""Figures that have no ratio."""
Figures = dict[str, float]


def measure(side: str, job: Job, data: Path, settings: Settings) -> Figures:
    """Of one whole command; where the job has a kill, of one with it, and of how much longer that took."""
    calm = run(side, replace(job, killed=0.0), data, settings)
    if not job.killed:
        return calm
    killed = run(side, job, data, settings)
    same = {name: calm[name] for name in ("accuracy", "numbers")}
    return {**killed, "undisturbed": calm["whole"], "extra": killed["whole"] - calm["whole"], **same}


def run(side: str, job: Job, data: Path, settings: Settings) -> Figures:
    """One training in a folder of its own.

    Raises:
        RuntimeError: with the end of what it said, when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="dist-train-peers-") as name:
        out, began, given = Path(name), time.time(), 0
        kill_at, found = int(job.killed * job.total_steps(data)), None
        while True:
            given += 1
            words = command(side, job, data, out, settings)
            with open(out / "log", "ab") as log, _Process(words, environment(side, job), log) as process:
                if kill_at and given == 1:
                    found = _kill(process, side, out, kill_at)
                code = process.wait(LIMIT_S)
            if code == 0:
                break
            if not kill_at or given == GIVEN:
                raise RuntimeError(f"{side} ended with {code}:\n{_said(out)}")
        whole, told = time.time() - began, events.events_of(side, out)
        if found is None:
            return events.figures(whole, told)
        unix, step = found
        again = (step + 1 - events.first_step_after(unix, told)) * job.batch * RANKS
        return {"whole": whole, "again": again, "starts": events.starts(told)}


class _Process(subprocess.Popen):
    """A command whose descendants end with the block, however that is left."""

    def __init__(self, words: list[str], environment: Mapping[str, str], log: Any) -> None:
        super().__init__(words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __exit__(self, *error: Any) -> None:
        if self.poll() is None:
            for pid in [self.pid, *descendants(self.pid)]:
                send(pid, signal.SIGKILL)
        super().__exit__(*error)


def _kill(process: subprocess.Popen, side: str, out: Path, step: int) -> tuple[float, int]:
    """Kills rank 1 as soon as `step` steps are told: when, and how many were.

    Raises:
        RuntimeError: when the command ends before.
    """
    while process.poll() is None:
        if (newest := events.newest_step(side, out)) >= step:
            os.kill(events.process_id(side, out, rank=1), signal.SIGKILL)
            return time.time(), newest
        time.sleep(POLL_S)
    raise RuntimeError(f"{side} ended with {process.returncode} before step {step}:\n{_said(out)}")


def _said(out: Path) -> str:
    return (out / "log").read_text(errors="replace")[-3000:]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--job", choices=list(JOBS), default="images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(SCRIPTS), help="those to measure (default: all)")
    parser.add_argument("--loading", help="loading processes of each peer, 0,0,2 say, in place of finding the best")
    parser.add_argument("--best", action="store_true", help="each side in its own fastest precision and memory format")
    parser.add_argument("--short", type=int, metavar="N", help="so many epochs, of text steps: to try it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no command is left behind
    job, peers = JOBS[args.job], args.peers.split(",")
    if args.short:
        job = replace(job, steps=args.short) if job.steps else replace(job, epochs=args.short)
    given = [int(number) for number in args.loading.split(",")] if args.loading else None
    if not set(peers) <= set(SCRIPTS) or (given and len(given) != len(peers)):
        parser.error(f"--peers are some of {', '.join(SCRIPTS)}, and --loading has a number for each of them")
    if missing := [peer for peer in peers if peer != "plain" and find_spec(peer) is None]:
        parser.error(f"{' and '.join(missing)} is not installed: pip install {' '.join(missing)}")
    if not (args.data.is_file() if job.steps else (args.data / "train").is_dir()):
        wanted = "a text, tinyshakespeare's" if job.steps else "a folder with train/CLASS/*.jpg and eval/CLASS/*.jpg"
        parser.error(f"{args.data} is not what --job {args.job} needs: {wanted}")
    with tempfile.TemporaryDirectory(prefix="dist-train-tokens-") as folder:
        data = write_tokens(args.data, Path(folder)) if job.steps else args.data.resolve()
        numbers = dict(zip(peers, given, strict=True)) if given else {}
        best = {side: _best(side, job, data, numbers.get(side), args.best) for side in [OURS, *peers]}
        found = _rounds(args.rounds, job, data, best)
        least = limits.bare(job, data, Path(folder), best[OURS])
    rows = [_row(side, found, best[side]) for side in found]
    if args.json:
        print(json.dumps({"sides": rows, "limits": least}, indent=2))
        return 0
    print(f"{rows[0]['numbers']:,.0f} numbers in the model, its buffers with them, on all sides")
    print("\n".join([*table(rows), *beside(least, rows[0]), *reached(job, rows)]))
    return 0


def _best(side: str, job: Job, data: Path, workers: int | None, is_free: bool) -> Settings:
    """The fastest number of loading processes, unless it is given; and with it, if that `is_free`, the fastest
    precision and memory format."""
    given = Settings(workers=0 if side == OURS else workers or 0, channels_last=not job.steps)
    is_open = side != OURS and workers is None
    best = _fastest(side, job, data, [replace(given, workers=n) for n in (WORKERS if is_open else [given.workers])])
    formats = (True, False) if is_free and not job.steps else (given.channels_last,)
    precisions = ("fp32", "bf16") if is_free else ("fp32",)
    return _fastest(side, job, data, [replace(best, precision=p, channels_last=f) for p in precisions for f in formats])


def _fastest(side: str, job: Job, data: Path, several: Sequence[Settings]) -> Settings:
    if len(several) == 1:
        return several[0]
    tried = {settings: run(side, replace(job, killed=0.0), data, settings)["whole"] for settings in several}
    print(f"{side}: " + "; ".join(f"{one}: {s:.1f} s" for one, s in tried.items()), file=sys.stderr)
    return min(tried, key=tried.__getitem__)


def _rounds(rounds: int, job: Job, data: Path, best: Mapping[str, Settings]) -> dict[str, list[Figures]]:
    """Of ours and of each peer, a round after the other.

    Raises:
        RuntimeError: when the sides' models are not of one size.
    """
    sides = list(best)
    found: dict[str, list[Figures]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            found[side].append(measure(side, job, data, best[side]))
            print(f"round {number + 1}, {side}: {found[side][-1]['whole']:.1f} s", file=sys.stderr)
    sizes = {side: int(own[0]["numbers"]) for side, own in found.items()}
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"not the same model: {sizes}")
    return found


def _row(side: str, found: Mapping[str, Sequence[Figures]], settings: Settings) -> dict[str, Any]:
    own, row = found[side], {"side": side, "settings": str(settings)}
    for name in own[0]:
        row[name] = statistics.median(one[name] for one in own)
        if name not in ("numbers", *ALIKE):  # of each round by itself: what else the machine does falls on both
            pairs = zip(found[OURS], own, strict=True)
            row[f"{name}_ratio"] = statistics.median(a[name] / b[name] if b[name] else 1.0 for a, b in pairs)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Behind each figure of a peer, in brackets, ours divided by it."""
    names = [name for name in rows[0] if name in ALIKE or f"{name}_ratio" in rows[0]]
    cells = [["", *(f"{name} {UNITS.get(name, (1, 's'))[1]}".strip() for name in names)]]
    for row in rows:
        cells.append([f"{row['side']}, {row['settings']}"])
        for name in names:
            factor, unit = UNITS.get(name, (1, "s"))
            figure = f"{factor * row[name]:.{2 if unit in ('s', 'ms') else 1 if unit == '%' else 0}f}"
            of_peer = f"{name}_ratio" in row and row["side"] != OURS
            cells[-1].append(f"{figure} ({row[f'{name}_ratio']:.3f})" if of_peer else figure)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def beside(least: Mapping[str, float], ours: Mapping[str, Any]) -> list[str]:
    """Of what cannot be saved, and ours."""
    lines = [f"nothing but computing: an epoch {least['epoch']:.2f} s; ours {ours.get('epoch', math.nan):.2f}"]
    return lines + [f"nothing but decoding each image once: {least['decoding']:.2f} s"] * bool(least["decoding"])


def reached(job: Job, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each aim: the ratio to the best peer, which is the one that ours gains the least on."""
    lines = []
    for name, aim in job.aims.items():
        best = max(rows[1:], key=lambda row: row[f"{name}_ratio"], default=None)
        if best:
            ratio = best[f"{name}_ratio"]
            verdict = "reached" if ratio <= aim else "not reached"
            lines.append(f"{name}: {ratio:.3f} of the best peer, {best['side']}; {aim} was aimed at: {verdict}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
