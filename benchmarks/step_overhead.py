"""What does dist-train add to a step? The same model, data and batch here and in a plain torchrun + DDP script.

    python -m benchmarks.step_overhead [--pairs N] [--steps N] [--exact false] [--json]

Both sides run alternately, on 2 ranks of one thread each, from images in memory. A step lasts from the end of one
optimizer step to the end of the next on rank 0; the median step of a run is its step time. The ratio of a pair is ours
divided by theirs; of these, the median over the pairs is printed, with the smallest and the largest.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.pairs import Command, Ratio, Speed, run_pairs

RANKS, GLOBAL_BATCH, WARM_UP = 2, 64, 10
CONFIG = str(Path(__file__).with_name("step_overhead.yaml"))
WORKS = {"cnn": ("model=cnn", 200), "resnet20": ("model=resnet_cifar", 50)}
"""For each model the override that chooses it, and the steps that take some seconds on two CPU cores."""


def ours(model: str, steps: int, exact: str) -> Command:
    def command(times: Path) -> list[str]:
        overrides = [WORKS[model][0], f"train.duration={steps} steps", f"batch.microbatches={RANKS}", f"exact={exact}"]
        run_dir = str(times.parent / "run")
        return ["-m", "benchmarks.timed_worker", str(times), CONFIG, *overrides, "--run-dir", run_dir]

    return command


def plain(model: str, steps: int) -> Command:
    def command(times: Path) -> list[str]:
        batch = ["--global-batch", str(GLOBAL_BATCH)]
        return ["-m", "benchmarks.plain_ddp", "--model", model, "--steps", str(steps), *batch, "--times", str(times)]

    return command


def compare(model: str, *, pairs: int, steps: int, exact: str) -> dict[str, object]:
    """Runs the pairs of one model: the ratios, and each side's median over the pairs."""
    print(f"{model}, {steps} steps, exact: {exact}", file=sys.stderr)
    done = run_pairs(
        ours(model, steps, exact),
        plain(model, steps),
        pairs=pairs,
        ranks=RANKS,
        warm_up=WARM_UP,
        global_batch=GLOBAL_BATCH,
    )
    return {
        "model": model,
        "exact": exact == "true",
        "pairs": pairs,
        "steps": steps,
        "step_time_ratio": asdict(Ratio.of([a.step_s / b.step_s for a, b in done])),
        "samples_per_s_ratio": asdict(Ratio.of([a.samples_per_s / b.samples_per_s for a, b in done])),
        "ours": _middle([a for a, _ in done]),
        "plain": _middle([b for _, b in done]),
    }


def _middle(speeds: Sequence[Speed]) -> dict[str, float]:
    names = ("step_s", "samples_per_s")
    return {name: statistics.median(getattr(speed, name) for speed in speeds) for name in names}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--steps", type=int, help="of each run (default 200, for resnet20 50)")
    parser.add_argument("--model", choices=[*WORKS, "all"], default="all")
    parser.add_argument("--exact", choices=("true", "false"), default="true", help="how gradients are added (ours)")
    parser.add_argument("--json", action="store_true", help="a JSON list on stdout")
    args = parser.parse_args(argv)
    models = list(WORKS) if args.model == "all" else [args.model]
    results = [
        compare(model, pairs=args.pairs, steps=args.steps or WORKS[model][1], exact=args.exact) for model in models
    ]
    print(json.dumps(results, indent=2) if args.json else "\n".join(map(_text, results)))
    return 0


def _text(result: dict) -> str:
    sides = [f"{1e3 * result[side]['step_s']:.2f} ms" for side in ("ours", "plain")]
    rates = [f"{result[side]['samples_per_s']:,.0f}" for side in ("ours", "plain")]
    return (
        f"{result['model']}, {'exact' if result['exact'] else 'exact: false'}, ours / plain torchrun + DDP,"
        f" median of {result['pairs']} pairs (least to most):\n"
        f"  step time  {Ratio(**result['step_time_ratio'])}   {sides[0]} / {sides[1]}\n"
        f"  samples/s  {Ratio(**result['samples_per_s_ratio'])}   {rates[0]} / {rates[1]}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
