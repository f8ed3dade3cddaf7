"""What does dist-train add to a step? The same model, data and batch here and in a plain torchrun + DDP script.

    python -m benchmarks.step_overhead [--pairs N] [--steps N] [--model cnn|resnet20|mlp|gpt] [--exact false]
        [--against a.b=c] [--json]

Both sides run on 2 ranks of one thread each, from images in memory, or from a file of tokens, alternately
(benchmarks/pairs.py). With `--tree FOLDER`, the other side is dist-train as another checkout has it; with `--against
model.compile=true` it is dist-train with that. A step lasts from the end of one optimizer step to the end of the next
on rank 0. Each pair gives a ratio of ours to theirs, of median step times and of samples/s; the median of these ratios
over all pairs is the result.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import VOCABULARY
from benchmarks.pairs import Command, Pair, Ratio, run_pair

RANKS, GLOBAL_BATCH, WARM_UP, SLICES = 2, 64, 15, 8
ENDLESS = 1_000_000
"""Steps of either training: it is ended from outside."""
CONFIG, GPT_CONFIG = (str(Path(__file__).with_name(f"step_overhead{end}.yaml")) for end in ("", "_gpt"))
WORKS = {
    "cnn": ("model=cnn", 20),
    "resnet20": ("model=resnet_cifar", 10),
    "mlp": ("model={name: mlp, hidden: [32]}", 300),
    "gpt": ("model=gpt", 20),
}
"""For each model the override that chooses it, and the steps of a slice: a second or two on a CPU core."""


def ours(model: str, exact: str, more: Sequence[str] = ()) -> Command:
    overrides = [WORKS[model][0], f"train.duration={ENDLESS} steps", f"batch.microbatches={RANKS}", f"exact={exact}"]
    overrides += more

    def command(folder: Path) -> list[str]:
        stamps, run_dir = str(folder / "stamps"), str(folder / "run")
        config, data = (GPT_CONFIG, [f"data.root={tokens(folder)}"]) if model == "gpt" else (CONFIG, [])
        return ["-m", "benchmarks.timed_worker", stamps, config, *overrides, *data, "--run-dir", run_dir]

    return command


def plain(model: str) -> Command:
    size = ["--steps", str(ENDLESS), "--global-batch", str(batch(model))]

    def command(folder: Path) -> list[str]:
        stamps = ["--stamps", str(folder / "stamps")]
        if model == "gpt":
            return ["-m", "benchmarks.plain_lm", "--tokens", str(tokens(folder)), *size, *stamps]
        return ["-m", "benchmarks.plain_ddp", "--model", model, *size, *stamps]

    return command


def batch(model: str) -> int:
    return 12 if model == "gpt" else GLOBAL_BATCH


def tokens(folder: Path) -> Path:
    """A folder with a million random tokens, as nanoGPT's prepare.py writes them."""
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, 1_000_000, dtype=np.uint16)
    drawn.tofile(folder / "train.bin")
    drawn[:10_000].tofile(folder / "val.bin")
    return folder


def compare(
    model: str, *, pairs: int, steps: int, exact: str, tree: Path | None = None, against: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs the pairs of one model: the ratios, and each side's median over the pairs.

    Args:
        tree: another checkout, whose dist-train takes the place of the plain script.
        against: overrides with which dist-train takes its place.
    """
    other = ours(model, exact, against) if tree or against else plain(model)
    done = []
    for number in range(1, pairs + 1):
        size = {"slices": SLICES, "steps": steps, "ranks": RANKS, "warm_up": WARM_UP, "global_batch": batch(model)}
        done.append(run_pair(ours(model, exact), other, **size, other_root=tree))
        print(f"{model}, pair {number} of {pairs}: {done[-1].ratio('step_s'):.3f}", file=sys.stderr)
    return {
        "model": model,
        "other": " ".join(against) or (str(tree) if tree else "plain torchrun + DDP"),
        "exact": exact == "true",
        "pairs": pairs,
        "steps_a_pair": SLICES * steps,
        "step_time_ratio": asdict(Ratio.of([pair.ratio("step_s") for pair in done])),
        "samples_per_s_ratio": asdict(Ratio.of([pair.ratio("samples_per_s") for pair in done])),
        "ours": _middle(done, 0),
        "plain": _middle(done, 1),
    }


def _middle(pairs: Sequence[Pair], side: int) -> dict[str, float]:
    names = ("step_s", "samples_per_s")
    return {name: statistics.median(pair.median(side, name) for pair in pairs) for name in names}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of programs (default 5)")
    parser.add_argument("--steps", type=int, help=f"of each of the {SLICES} slices (default 20, for resnet20 10)")
    parser.add_argument("--model", choices=[*WORKS, "all"], default="all")
    parser.add_argument("--exact", choices=("true", "false"), default="true", help="how our side adds gradients")
    parser.add_argument("--tree", type=Path, help="another checkout of dist-train, to be the other side")
    parser.add_argument("--against", action="append", default=[], metavar="a.b=c", help="the other side is ours so")
    parser.add_argument("--json", action="store_true", help="a JSON list on stdout")
    args = parser.parse_args(argv)
    results = []
    for model in WORKS if args.model == "all" else [args.model]:
        results.append(
            compare(
                model,
                pairs=args.pairs,
                steps=args.steps or WORKS[model][1],
                exact=args.exact,
                tree=args.tree,
                against=args.against,
            )
        )
    print(json.dumps(results, indent=2) if args.json else "\n".join(map(_text, results)))
    return 0


def _text(result: dict[str, Any]) -> str:
    times = " against ".join(f"{1e3 * result[side]['step_s']:.2f} ms" for side in ("ours", "plain"))
    rates = " against ".join(f"{result[side]['samples_per_s']:,.0f}" for side in ("ours", "plain"))
    return (
        f"{result['model']}, exact: {str(result['exact']).lower()}, dist-train / {result['other']}, "
        f"{result['pairs']} pairs of {result['steps_a_pair']} steps\n"
        f"  step time  {Ratio(**result['step_time_ratio'])}  {times}\n"
        f"  samples/s  {Ratio(**result['samples_per_s_ratio'])}  {rates}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
