"""What a side tells of its training, and the figures that come of it.

Events, in their order, each with `unix`: `began` (each rank: `rank`, `pid`), `built` (`numbers` of the model's state),
`step` (`step`: so many are done; every tenth), and for each epoch `trained` and `evaluated` (`accuracy`).
"""

import json
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.peers.jobs import OURS

Event = dict[str, Any]


def events_of(side: str, out: Path) -> list[Event]:
    return _ours(out / "run") if side == OURS else lines(out / "events")


def _ours(run_dir: Path) -> list[Event]:
    newest = max((run_dir / "checkpoints").glob("step-*"))
    built = {"event": "built", "numbers": _numbers(newest / "model.safetensors")}
    return [*_began(run_dir), built, *of_metrics(lines(run_dir / "metrics.jsonl"))]


def _began(run_dir: Path) -> list[Event]:
    """A generation after the other."""
    told = (json.loads(path.read_text()) for path in sorted(run_dir.glob("generations/*/ranks/*.json")))
    return [{"event": "began", "rank": one["rank"], "pid": one["pid"]} for one in told]


def of_metrics(rows: Sequence[Event]) -> list[Event]:
    """From metrics.jsonl: the rows of an interval of steps, which ends with each epoch too, are written together."""
    events: list[Event] = []
    for row in rows:
        unix = row["time"]["unix"]
        if row["kind"] == "train":
            if events and events[-1]["event"] == "step" and events[-1]["unix"] == unix:
                events[-1]["step"] = row["step"]
            else:
                events.append({"event": "step", "first": row["step"], "step": row["step"], "unix": unix})
        elif row["kind"] == "evaluation":
            events.append({"event": "trained", "unix": events[-1]["unix"]})
            events.append({"event": "evaluated", "unix": unix, "accuracy": row["accuracy"]})
    return events


def _numbers(file: Path) -> int:
    """Of all tensors in a .safetensors file."""
    with open(file, "rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def figures(whole: float, events: Sequence[Event]) -> dict[str, float]:
    """Seconds of the whole command; of a step, the median of tens that no evaluation lies between, NaN of fewer; of an
    epoch's training, the median of those after the first, or of a single one from its first event on; of an evaluation;
    and how right it was at the end, with how many numbers."""
    told = {kind: [one for one in events if one["event"] == kind] for kind in ("built", "step", "trained", "evaluated")}
    begins, ends = ([one["unix"] for one in told[kind]] for kind in ("evaluated", "trained"))
    later = [end - begin for begin, end in zip(begins, ends[1:], strict=False)]
    near = [(a, b) for a, b in pairwise(events) if a["event"] == b["event"] == "step" and a["step"] < b["step"]]
    steps = [(b["unix"] - a["unix"]) / (b["step"] - a["step"]) for a, b in near]
    return {
        "whole": whole,
        "step": statistics.median(steps or [math.nan]),
        "epoch": statistics.median(later or [ends[0] - told["step"][0]["unix"]]),
        "evaluation": statistics.median(b - a for a, b in zip(ends, begins, strict=True)),
        "accuracy": told["evaluated"][-1]["accuracy"],
        "numbers": told["built"][-1]["numbers"],
    }


def newest_step(side: str, out: Path) -> int:
    """So many steps are done, by the newest event of a training that goes on; 0 where that is of another kind."""
    path = out / ("run/metrics.jsonl" if side == OURS else "events")
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    newest = json.loads(whole.rpartition("\n")[2] or "{}")
    return newest.get("step", 0) if newest.get("kind", newest.get("event")) in ("train", "step") else 0


def process_id(side: str, out: Path, rank: int) -> int:
    """Of the rank of this number, in a training that has not been started again."""
    events = _began(out / "run") if side == OURS else lines(out / "events")
    return next(one["pid"] for one in events if one["event"] == "began" and one["rank"] == rank)


def starts(events: Sequence[Event]) -> int:
    """How often the ranks were started."""
    return sum(one["event"] == "began" and one["rank"] == 0 for one in events)


def first_step_after(unix: float, events: Sequence[Event]) -> int:
    """The number of the first step of those that were told after a moment."""
    return next(one.get("first", one["step"]) for one in events if one["event"] == "step" and one["unix"] > unix)


def lines(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text().splitlines()]
