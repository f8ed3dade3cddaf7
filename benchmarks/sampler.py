"""What does it cost to begin an epoch? The order of 10⁹ samples here, and of fewer by torch's DistributedSampler.

    python -m benchmarks.sampler [--samples N] [--torch-samples N] [--json]

Each side runs in a process of its own, which reports the time from the sampler's making to its first index, best of
several beginnings in the middle of an epoch for ours and one for torch's, and the memory that this took: the most that
Python's and NumPy's allocations held (tracemalloc) for ours, and the growth of the process's peak for torch's.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

GLOBAL_BATCH, MICROBATCHES, RANKS, RANK = 1024, 8, 8, 5


def ours(samples: int) -> dict[str, Any]:
    from dist_train.data.sampler import ShardedSampler

    def first(step: int) -> int:
        sampler = ShardedSampler(
            range(samples), global_batch=GLOBAL_BATCH, microbatches=MICROBATCHES, num_replicas=RANKS, rank=RANK
        )
        return int(next(sampler.microbatches(step, sampler.steps_per_epoch)).indices[0])

    first(0)  # NumPy's own first call
    steps = [samples // GLOBAL_BATCH * part // 11 for part in range(1, 11)]
    seconds = []
    for step in steps:
        begun = time.perf_counter()
        first(step)
        seconds.append(time.perf_counter() - begun)
    tracemalloc.start()
    for step in steps:
        first(step)
    peak = tracemalloc.get_traced_memory()[1]
    return {"sampler": "dist-train", "samples": samples, "first_index_s": min(seconds), "memory_bytes": peak}


def torch_s(samples: int) -> dict[str, Any]:
    from torch.utils.data import DistributedSampler

    before = _peak()
    begun = time.perf_counter()
    sampler = DistributedSampler(range(samples), num_replicas=RANKS, rank=RANK)  # type: ignore[arg-type, var-annotated]
    next(iter(sampler))
    seconds = time.perf_counter() - begun
    return {"sampler": "torch", "samples": samples, "first_index_s": seconds, "memory_bytes": _peak() - before}


def _peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


SIDES = {"ours": ours, "torch": torch_s}


def in_a_process_of_its_own(side: str, samples: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.sampler", "--side", side, "--samples", str(samples)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler", description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=10**9, help="of our side (default 1000000000)")
    parser.add_argument("--torch-samples", type=int, default=5 * 10**7, help="of torch's (default 50000000)")
    parser.add_argument("--json", action="store_true", help="a JSON list on stdout")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        print(json.dumps(SIDES[args.side](args.samples)))
        return 0
    both = [in_a_process_of_its_own("ours", args.samples), in_a_process_of_its_own("torch", args.torch_samples)]
    print(json.dumps(both, indent=2) if args.json else "\n".join(map(_text, both)))
    return 0


def _text(result: dict[str, Any]) -> str:
    time_and_space = f"{1e3 * result['first_index_s']:,.3f} ms, {result['memory_bytes'] / 1e6:,.3f} MB"
    return f"{result['sampler']}, {result['samples']:,} samples: first index after {time_and_space}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
