"""How often does `dist-train compare` see a difference where there is none, and how many seeds does a real one take?

    python -m benchmarks.compare_honesty FOLDER [--groups N] [--seeds N] [--power-seeds N] [--table]

False alarms: for each of N disjoint groups of seeds, digits with `mlp` and dropout as A, and as B the same with half as
many microbatches, which draws other dropout masks and changes nothing that matters. In 5 % of the groups a 95 %
interval must leave out zero, of paired and of unpaired runs (those of B have the seeds of the next group), and not much
more or less: the interval of Clopper and Pearson (https://doi.org/10.1093/biomet/26.4.404) says how well N groups can
tell.

Power: `configs/digits.yaml` with optimizer.lr 0.1 and 0.03; from how many seeds on is the difference seen?

All run in this process, one after another, and are kept in FOLDER: the same command goes on where it was interrupted,
and `--table` trains nothing.
"""

import argparse
import contextlib
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dist_train.report.compare import compare
from dist_train.report.student import Estimate
from dist_train.rundir.layout import RunDir
from dist_train.rundir.records import RunState

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs" / "digits.yaml"
SMALL = ("model.name=mlp", "model.hidden=[32]", "model.dropout=0.2", "train.duration=4 epochs")
FALSE_ALARMS = {"a": (*SMALL, "batch.microbatches=8"), "b": (*SMALL, "batch.microbatches=4")}
POWER = {"lr0.1": ("optimizer.lr=0.1",), "lr0.03": ("optimizer.lr=0.03",)}
METRICS = ("accuracy", "loss")
QUIET = (
    "tracking.wandb.mode=disabled",
    "train.sanity_check=false",
    "tracking.every=1 epochs",
    "checkpoint.every=100 epochs",
)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.compare_honesty", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5, help="of a group")
    parser.add_argument("--power-seeds", type=int, default=10)
    parser.add_argument("--table", action="store_true", help="trains nothing")
    chosen = parser.parse_args(argv)
    if not chosen.table:
        for seed in range(chosen.groups * chosen.seeds):
            for name, overrides in FALSE_ALARMS.items():
                train(chosen.folder / name / str(seed), seed, overrides)
        for seed in range(chosen.power_seeds):
            for name, overrides in POWER.items():
                train(chosen.folder / name / str(seed), seed, overrides)
    groups = [range(first, first + chosen.seeds) for first in range(0, chosen.groups * chosen.seeds, chosen.seeds)]
    false_alarms(chosen.folder, groups)
    power(chosen.folder, chosen.power_seeds)


def train(folder: Path, seed: int, overrides: Sequence[str]) -> None:
    """One run, in this process; what is done already is left alone."""
    if RunState.of(folder).status == "done":
        return
    from dist_train import worker
    from dist_train.control.stop import StopFlag

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Supervised: no page is made at its end.
    words = [str(DIGITS), *overrides, *QUIET, f"seed={seed}", "--run-dir", str(folder), "--supervised"]
    with (folder / "log").open("w") as log, contextlib.redirect_stderr(log):
        worker.main(words, StopFlag())
    shutil.rmtree(RunDir(folder).checkpoints)
    print(folder, flush=True)


def false_alarms(folder: Path, groups: Sequence[range]) -> None:
    for metric in METRICS:
        for name, seeds_of_b in (("paired", groups), ("unpaired", [*groups[1:], groups[0]])):
            pairs = zip(groups, seeds_of_b, strict=True)
            tells = [compared(folder, (("a", of_a), ("b", of_b)), metric)[name].tells for of_a, of_b in pairs]
            low, high = (f"{100 * share:.1f}" for share in clopper_pearson(sum(tells), len(tells)))
            share = f"{100 * sum(tells) / len(tells):.1f} % (95 %: {low} … {high})"
            print(f"false alarms   {metric:<9} {name:<9} {sum(tells)} of {len(tells)} groups  {share}")


def compared(folder: Path, groups: Iterable[tuple[str, range]], metric: str) -> dict[str, Estimate]:
    [found] = compare([folder / name / str(seed) for name, seeds in groups for seed in seeds], metric).judgements
    both = {"paired": found.paired, "unpaired": found.unpaired}
    return {name: test for name, test in both.items() if test is not None}


def power(folder: Path, most: int) -> None:
    for metric in METRICS:
        for count in range(2, most + 1):
            for name, test in compared(folder, [(name, range(count)) for name in POWER], metric).items():
                interval = f"{test.difference:+.5f} ({test.low:+.5f} … {test.high:+.5f})"
                tells = "tells" if test.tells else f"about {test.more or 'a thousand'} more"
                print(f"lr 0.1 → 0.03  {metric:<9} {name:<9} {count:>2} seeds  {interval}  {tells}")


def clopper_pearson(hits: int, tries: int) -> tuple[float, float]:
    """The 95 % interval of a share, by bisection on the binomial distribution itself."""

    def at_least(share: float, least: int) -> float:
        return math.fsum(math.comb(tries, k) * share**k * (1 - share) ** (tries - k) for k in range(least, tries + 1))

    low = 0.0 if hits == 0 else _root(lambda share: at_least(share, hits) - 0.025)
    high = 1.0 if hits == tries else _root(lambda share: at_least(share, hits + 1) - 0.975)
    return low, high


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low


if __name__ == "__main__":
    main(sys.argv[1:])
