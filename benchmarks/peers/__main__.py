"""How fast is dist-train beside the launchers that people use, on the same work, as whole commands?

    pip install accelerate lightning
    python -m benchmarks.peers FOLDER [--job images|photos] [--rounds N] [--peers plain,accelerate,lightning] [--json]

FOLDER holds `train/CLASS/*.jpg` and `eval/CLASS/*.jpg`. `images`: 32-pixel files, random crop and flip, 2 epochs with
an evaluation and a checkpoint each; `photos`: random resized crops of 64 pixels, 3 epochs. 2 ranks of one thread each
on the CPU, the same network in the same memory layout and precision. First every peer finds its own best number of
loading processes (0, 1, 2), then rounds of all of them in turn; the figures are medians over the rounds. dist-train's
cache of decoded images is dropped before each round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(Path(__file__).with_name("ours.yaml"))
OURS, RANKS, PIXELS, LIMIT_S = "dist-train", 2, 64, 900.0
EPOCHS, BATCH = {"images": 2, "photos": 3}, {"images": 64, "photos": 32}
SIDE = 112
"""Pixels of the shorter side at which photos are kept: 1.75 times a crop's, as FFCV's ImageNet has it (400 for 224)."""
WORKERS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Seconds: of the whole command; of the training part of each epoch after the first; of its evaluations; and how
    right it was at the end."""

    whole: float
    epoch: float
    evaluation: float
    accuracy: float


def command(side: str, job: str, data: Path, out: Path, workers: int) -> list[str]:
    epochs, batch = str(EPOCHS[job]), BATCH[job]
    if side == OURS:
        more = [f"data.root={data}", f"train.duration={epochs} epochs", f"batch.global_size={RANKS * batch}"]
        if job == "photos":
            crop = "[{name: random_resized_crop}, {name: horizontal_flip}, ${augment.2}]"
            more += [f"data.image_size={PIXELS}", f"data.cache={{side: {SIDE}, folder: {out / 'cache'}}}"]
            more += [f"augment={_augment(crop)}"]
        else:
            more += [f"data.cache={{folder: {out / 'cache'}}}"]
        launch = [sys.executable, "-m", "dist_train.launch", "train", CONFIG, "--nproc-per-node", str(RANKS)]
        return [*launch, "--run-dir", str(out / "run"), *more]
    script = {"plain": "plain", "accelerate": "with_accelerate", "lightning": "with_lightning"}[side]
    module = ["-m", f"benchmarks.peers.{script}", str(data), str(out), "--epochs", epochs, "--batch", str(batch)]
    module += ["--workers", str(workers), *(["--photos", str(PIXELS)] if job == "photos" else [])]
    if side == "lightning":
        return [sys.executable, *module]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), *module]


def _augment(crop: str) -> str:
    return crop.replace("${augment.2}", "{name: normalize, mean: [0.49, 0.48, 0.45], std: [0.25, 0.24, 0.26]}")


def run(side: str, job: str, data: Path, workers: int) -> Taken:
    """One whole command, in a folder of its own.

    Raises:
        RuntimeError: with the end of what it said, when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="dist-train-peers-") as name:
        out = Path(name)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
        began = time.time()
        words = command(side, job, data, out, workers)
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        whole = time.time() - began
        if done.returncode:
            raise RuntimeError(f"{side} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        events = ours_events(out / "run") if side == OURS else _lines(out / "events")
        return taken(whole, events)


def taken(whole: float, events: Sequence[dict[str, Any]]) -> Taken:
    """Of events in their order: `trained` and `evaluated`, for each epoch."""
    trained = [one["unix"] for one in events if one["event"] == "trained"]
    evaluated = [one["unix"] for one in events if one["event"] == "evaluated"]
    later = [end - begin for begin, end in zip(evaluated, trained[1:], strict=False)]
    return Taken(
        whole=whole,
        epoch=statistics.median(later),
        evaluation=statistics.median(b - a for a, b in zip(trained, evaluated, strict=True)),
        accuracy=next(one["accuracy"] for one in reversed(events) if one["event"] == "evaluated"),
    )


def ours_events(run_dir: Path) -> list[dict[str, Any]]:
    """The same from metrics.jsonl: an interval of steps ends with each epoch, when its rows are written."""
    events, last = [], 0.0
    for row in _lines(run_dir / "metrics.jsonl"):
        if row["kind"] == "train":
            last = row["time"]["unix"]
        elif row["kind"] == "evaluation":
            events.append({"event": "trained", "unix": last})
            events.append({"event": "evaluated", "unix": row["time"]["unix"], "accuracy": row["accuracy"]})
    return events


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--job", choices=list(EPOCHS), default="images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="plain,accelerate,lightning")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    peers, data = args.peers.split(","), args.data.resolve()
    best = {}
    for peer in peers:
        tried = {workers: run(peer, args.job, data, workers).whole for workers in WORKERS}
        best[peer] = min(tried, key=tried.__getitem__)
        print(f"{peer}: " + ", ".join(f"{n} loading: {s:.1f} s" for n, s in tried.items()), file=sys.stderr)
    sides = [OURS, *peers]
    found: dict[str, list[Taken]] = {side: [] for side in sides}
    for number in range(args.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            found[side].append(run(side, args.job, data, best.get(side, 0)))
            print(f"round {number + 1}, {side}: {found[side][-1].whole:.1f} s", file=sys.stderr)
    rows = [_row(side, found[side], found, best.get(side)) for side in sides]
    print(json.dumps(rows, indent=2) if args.json else "\n".join(map(_text, rows)))
    return 0


def _row(side: str, own: list[Taken], found: dict[str, list[Taken]], workers: int | None) -> dict[str, Any]:
    names = ("whole", "epoch", "evaluation", "accuracy")
    row: dict[str, Any] = {"side": side, "loading_processes": workers}
    row |= {name: statistics.median(getattr(one, name) for one in own) for name in names}
    for name in names[:3]:  # of each round by itself: what else the machine does falls on both alike
        pairs = zip(found[OURS], own, strict=True)
        row[f"{name}_ratio"] = statistics.median(getattr(a, name) / getattr(b, name) for a, b in pairs)
    return row


def _text(row: dict[str, Any]) -> str:
    workers = "" if row["loading_processes"] is None else f", {row['loading_processes']} loading"
    parts = [
        f"{name} {row[name]:6.2f} s (ours {row[f'{name}_ratio']:.2f})" for name in ("whole", "epoch", "evaluation")
    ]
    return f"{row['side'] + workers:24} {'  '.join(parts)}  accuracy {100 * row['accuracy']:.1f} %"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
