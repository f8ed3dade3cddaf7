"""What does `exact: true` cost? The same training with the sum along the fixed tree, and with DDP's own all-reduce.

    python -m benchmarks.exactness [--pairs N] [--model small|resnet18|all] [--ranks 2,4] [--json]

Once with as many microbatches as ranks, so that each does one forward and backward a step, and once with eight, so that
each does several, on both sides. One thread a rank; the two sides run alternately (benchmarks/pairs.py). A step lasts
from the end of one optimizer step to the end of the next on rank 0. Each pair gives the ratio of the median step times;
the median of these over all pairs is the result.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.pairs import Command, Pair, Ratio, run_pair

GLOBAL_BATCH, SLICES = 64, 8
ENDLESS = 1_000_000
"""Steps of either training: it is ended from outside."""
CONFIG = str(Path(__file__).with_name("step_overhead.yaml"))
WORKS: dict[str, tuple[list[str], int, int]] = {
    "small": (["model=cnn"], 20, 15),
    "resnet18": (["model=resnet18", "data={name: synthetic, shape: [3, 64, 64]}"], 3, 3),
}
"""For each model the overrides that choose it, the steps of a slice (a second or more on a CPU core), and of the
warm-up. ResNet-18 has 11.2 million parameters; its images are of 64×64 pixels."""


def side(model: str, microbatches: int, exact: bool) -> Command:
    overrides = [*WORKS[model][0], f"train.duration={ENDLESS} steps"]
    overrides += [f"batch.microbatches={microbatches}", f"exact={str(exact).lower()}"]

    def command(folder: Path) -> list[str]:
        stamps, run_dir = str(folder / "stamps"), str(folder / "run")
        return ["-m", "benchmarks.timed_worker", stamps, CONFIG, *overrides, "--run-dir", run_dir]

    return command


def compare(model: str, *, ranks: int, microbatches: int, pairs: int, steps: int) -> dict[str, Any]:
    """Runs the pairs of one setting: the ratio, and each side's median step time over the pairs, in seconds."""
    done: list[Pair] = []
    size = {"slices": SLICES, "steps": steps, "ranks": ranks, "warm_up": WORKS[model][2], "global_batch": GLOBAL_BATCH}
    for number in range(1, pairs + 1):
        done.append(run_pair(side(model, microbatches, True), side(model, microbatches, False), **size))
        ratio = done[-1].ratio("step_s")
        print(f"{model}, {ranks} ranks, V = {microbatches}, pair {number} of {pairs}: {ratio:.3f}", file=sys.stderr)
    return {
        "model": model,
        "ranks": ranks,
        "microbatches": microbatches,
        "pairs": pairs,
        "steps_a_pair": SLICES * steps,
        "step_time_ratio": asdict(Ratio.of([pair.ratio("step_s") for pair in done])),
        "exact_step_s": _middle([pair.median(0, "step_s") for pair in done]),
        "plain_step_s": _middle([pair.median(1, "step_s") for pair in done]),
    }


def _middle(values: Sequence[float]) -> float:
    return Ratio.of(values).median


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of programs (default 5)")
    parser.add_argument("--steps", type=int, help=f"of each of the {SLICES} slices (default 20, for resnet18 3)")
    parser.add_argument("--model", choices=[*WORKS, "all"], default="all")
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks (default 2,4)")
    parser.add_argument("--json", action="store_true", help="a JSON list on stdout")
    args = parser.parse_args(argv)
    results = []
    for model in WORKS if args.model == "all" else [args.model]:
        for ranks in map(int, args.ranks.split(",")):
            for microbatches in sorted({ranks, 8}):
                size = {"pairs": args.pairs, "steps": args.steps or WORKS[model][1]}
                results.append(compare(model, ranks=ranks, microbatches=microbatches, **size))
    print(json.dumps(results, indent=2) if args.json else "\n".join(map(_text, results)))
    return 0


def _text(result: dict[str, Any]) -> str:
    times = " against ".join(f"{1e3 * result[side]:.2f} ms" for side in ("exact_step_s", "plain_step_s"))
    return (
        f"{result['model']}, {result['ranks']} ranks, {result['microbatches']} microbatches, exact / plain, "
        f"{result['pairs']} pairs of {result['steps_a_pair']} steps: {Ratio(**result['step_time_ratio'])}, {times}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
