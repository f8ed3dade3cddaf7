"""Which rank, or which pair of ranks, is slower than the others. Pure functions.

A value is an outlier if it is below a fraction of the median of all *other* values. This is robust as long as less than
half of the values are outliers, and it finds one of two. The fractions leave room for what a busy machine does to
healthy ranks; on GPUs, whose work it hardly disturbs, they are closer to 1.
"""

import statistics
from collections.abc import Mapping
from typing import Any, TypeVar

from dist_train.config.replies import RanksMeasured

from .finding import Finding, ok, warning

K = TypeVar("K")
SPEED = {"cpu": 0.5, "cuda": 0.85}
"""Of the others' speed of matrix multiplication. Half is what two hardware threads of one core get."""
SHARE = 0.4
"""Of the others' share of a core."""
LINK = {"cpu": 0.2, "cuda": 0.4}
"""Of the others' bandwidth. PCIe beside NVLink is slower by design, but the slowest link sets the pace."""


def outliers(values: Mapping[K, float], fraction: float) -> dict[K, float]:
    """The values below `fraction` of the median of all others, each as a fraction of that median."""
    found = {}
    for key, value in values.items():
        others = [other for name, other in values.items() if name != key]
        usual = statistics.median(others) if others else value
        if value < fraction * usual:
            found[key] = value / usual
    return found


def judge(measured: RanksMeasured, *, cores: int, ranks_here: int) -> list[Finding]:
    """Findings from what the ranks measured of themselves and each other (dist_train.commands.bench_ranks)."""
    taking_turns = measured.device == "cpu" and ranks_here > cores
    compute = _compute(measured, taking_turns)
    talk = [_all_reduce(measured)] if measured.all_reduce_gbs is not None else []
    links = [_pairs(measured, compute.facts["slow_ranks"])] if len(measured.pairs_gbs) > 1 and not taking_turns else []
    return [compute, *talk, *links]


def _compute(measured: RanksMeasured, taking_turns: bool) -> Finding:
    gflops, shares = dict(enumerate(measured.gflops)), dict(enumerate(measured.share))
    device = measured.device
    slow = {} if taking_turns else outliers(gflops, SPEED[device])
    short = {} if taking_turns else outliers(shares, SHARE)
    facts = {"gflops": measured.gflops, "share": measured.share, "slow_ranks": sorted({*slow, *short})}
    facts["judged"] = not taking_turns
    said = [f"rank {rank} computes at {_percent(part)} of the others' speed" for rank, part in slow.items()]
    for rank in sorted(short.keys() - slow.keys()):
        others = statistics.median(share for other, share in shares.items() if other != rank)
        said.append(f"rank {rank} gets {_percent(shares[rank])} of a core, the others {_percent(others)}")
    if said:
        advice = (
            "look at that GPU's clocks and temperature: nvidia-smi -q -d PERFORMANCE,TEMPERATURE"
            if device == "cuda"
            else "something else runs on its core, or its core is slower: top, taskset -p PID"
        )
        return warning("computing", "; ".join(said), advice, **facts)
    note = ", no rank stands out" if len(gflops) > 1 else ""
    note = ", not compared: more ranks than cores" if taking_turns else note
    return ok("computing", f"{_range(gflops.values())} GFLOP/s a rank{note}", **facts)


def _all_reduce(measured: RanksMeasured) -> Finding:
    rate, ranks, mb = measured.all_reduce_gbs, measured.world_size, measured.all_reduce_mb
    text = f"{rate:.3g} GB/s over each link in a {measured.backend} all-reduce of {mb} MB, {ranks} ranks"
    return ok("all-reduce", text, gb_per_second=rate, ranks=ranks, backend=measured.backend, mb=mb)


def _pairs(measured: RanksMeasured, slow_ranks: list[int]) -> Finding:
    """Judges the links between ranks that are not slow themselves."""
    every = {tuple(map(int, name.split("-"))): rate for name, rate in measured.pairs_gbs.items()}
    rates = {pair: rate for pair, rate in every.items() if not set(pair) & set(slow_ranks)}
    found = outliers(rates, LINK[measured.device])
    facts = {"gb_per_second": measured.pairs_gbs, "slow_pairs": ["-".join(map(str, pair)) for pair in found]}
    if not found:
        return ok("pairs", f"{_range(every.values())} GB/s each way, no pair stands out", **facts)
    named = _common_rank(set(found), set(rates))
    if named is not None:
        said = f"every exchange with rank {named} is slow, at {_percent(max(found.values()))} of the others' or less"
    else:
        said = "; ".join(f"ranks {a} and {b} at {_percent(part)} of the others'" for (a, b), part in found.items())
    advice = (
        "how are the GPUs connected? nvidia-smi topo -m"
        if measured.device == "cuda"
        else "which cores and interface do these ranks use?"
    )
    return warning("pairs", said, advice, **facts)


def _common_rank(slow: set[tuple[int, ...]], all_pairs: set[tuple[int, ...]]) -> int | None:
    """The rank whose pairs are exactly the slow ones, if there is one and it has more than one pair."""
    for rank in set.intersection(*map(set, slow)):
        own = {pair for pair in all_pairs if rank in pair}
        if own == slow and len(own) > 1:
            return rank
    return None


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"


def _range(values: Any) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
