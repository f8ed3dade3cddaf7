"""`python -m tests.exactness [--count N] [--seed S] [--pairs] [--zoo]`: draws configs and trains each in many ways."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

import yaml

from tests import rank_pool
from tests.exactness.check import Verdict
from tests.exactness.covering import in_pairs
from tests.exactness.draws import Draw, at_random, config_of
from tests.exactness.matrix import MOST_REFUSED, Matrix
from tests.exactness.zoo.animals import animals


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    if arguments.zoo is not None:
        return _zoo(arguments.zoo)
    draws = in_pairs() if arguments.pairs else at_random(arguments.count, arguments.seed)
    wanted = range(len(draws)) if arguments.only is None else [arguments.only]
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rank_pool.start_server()
    with Matrix() as matrix:
        for number in wanted:
            begun = time.monotonic()
            verdict = matrix.verdict(draws[number], thorough=not arguments.pairs)
            counts[verdict.kind] += 1
            if verdict.kind == "refused":
                reasons[verdict.detail] += 1
            print(f"{number:>4} {verdict.kind:<9} {time.monotonic() - begun:5.1f} s  {verdict.detail}", flush=True)
            if verdict.is_wrong:
                _show(matrix, draws[number], verdict, arguments.shrink)
    print(f"\n{sum(counts.values())} draws: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    for reason, count in reasons.items():
        print(f"  refused {count} times: {reason}")
    return 1 if counts["wrong"] or counts["refused"] > MOST_REFUSED * max(10, sum(counts.values())) else 0


def _zoo(wanted: str) -> int:
    wrong = 0
    with Matrix() as matrix:
        for name, animal in animals().items():
            if wanted not in name:
                continue
            begun = time.monotonic()
            verdict = matrix.habit(animal)
            wrong += verdict.is_wrong
            print(f"{name:<45} {verdict.kind:<8} {time.monotonic() - begun:5.1f} s  {verdict.detail}", flush=True)
    return 1 if wrong else 0


def _show(matrix: Matrix, draw: Draw, verdict: Verdict, shrink: bool) -> None:
    if shrink:
        draw, verdict = matrix.shrunk(draw, verdict)
        print(f"     made small: {verdict.detail}")
    text = yaml.safe_dump(config_of(draw), sort_keys=False, default_flow_style=None, width=140)
    print("".join(f"     | {line}\n" for line in text.splitlines()), flush=True)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.exactness", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="draws at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--pairs", action="store_true", help="the set in which every pair of choices occurs, instead")
    parser.add_argument(
        "--zoo", nargs="?", const="", metavar="WORD", help="modules with the habits of users instead, of this name"
    )
    parser.add_argument("--only", type=int, metavar="K", help="the draw of this number alone")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="show failing draws as they are")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
