"""How fast is each rank, and how fast do the ranks talk to each other? As JSON.

For `dist-train doctor`, which judges what rank 0 writes. Each rank multiplies matrices on its own; then all
ranks all-reduce a tensor with the process group of a training; then pairs of ranks exchange a tensor.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train.commands.common import reporting
from dist_train.config.replies import RanksMeasured
from dist_train.config.requests import BenchRanksRequest, read_request
from dist_train.config.schema import DistributedConfig
from dist_train.config.types import Duration
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.rundir.codec import write_json

SLICES, SLICE_S = 10, 0.12
COUNTS = 3
"""A rank multiplies in several windows of time. The third best counts, so that passing disturbances do not."""
SIDE = {"cpu": 256, "cuda": 4096}
REPEATS = 5
"""Repetitions of every exchange; the fastest counts."""
REDUCED_MB = {"cpu": 16, "cuda": 256}
EXCHANGED_MB = {"cpu": 4, "cuda": 64}
ALL_PAIRS = 8
"""Up to this number of ranks every pair is measured; beyond it only neighbours, to finish within seconds."""
TIMEOUT = Duration(60.0, "s")
"""After it, ranks that cannot find each other end with an error that says so."""


def main(request: BenchRanksRequest) -> int:
    config = DistributedConfig(backend=request.backend, timeout=TIMEOUT)  # type: ignore[arg-type]
    with reporting(), ProcessGroup(Ranks.from_environment(), config) as group:

        def write(found: Any) -> None:
            if group.ranks.is_first:
                write_json(Path(request.outcome), found)

        write(measure(group, lambda stage: write({"stage": stage})))
    return 0


def measure(group: ProcessGroup, begin: Callable[[str], None]) -> RanksMeasured:
    """All measurements of all ranks, on every rank. Calls `begin` with the name of the next stage."""
    torch.set_num_threads(1)
    begin("computing")
    _meet(group)
    mine = torch.tensor(_multiply(group.device), dtype=torch.float64)
    world_size = group.ranks.world_size
    everyone = _gather(group, mine)
    begin("adding up a tensor")
    reduced = _all_reduce(group)
    begin("exchanging tensors in pairs")
    pairs = sorted(pair for pairs in rounds(world_size) for pair in pairs)
    own = dict(_exchanges(group))
    times = _gather(group, torch.tensor([own.get(pair, 0.0) for pair in pairs], dtype=torch.float64)).amax(dim=0)
    giga = EXCHANGED_MB[group.device.type] / 1e3
    rates = {f"{low}-{high}": giga / s for (low, high), s in zip(pairs, times.tolist(), strict=True) if s > 0}
    return RanksMeasured(
        world_size=world_size,
        backend=group.backend,
        device=group.device.type,
        gflops=everyone[:, 0].tolist(),
        share=everyone[:, 1].tolist(),
        all_reduce_mb=REDUCED_MB[group.device.type],
        all_reduce_gbs=reduced,
        pairs_gbs=rates,
    )


def _meet(group: ProcessGroup) -> None:
    """Returns when every rank has called it."""
    group.all_reduce_device_(torch.zeros(1, device=group.device))


def _gather(group: ProcessGroup, row: Tensor) -> Tensor:
    """Every rank's row, on every rank, within the time limit of the group."""
    table = torch.zeros(group.ranks.world_size, len(row), dtype=torch.float64, device=group.device)
    table[group.ranks.rank] = row.to(group.device)
    return group.all_reduce_device_(table).cpu()


# ---------------------------------------------------------------- computing


def _multiply(device: torch.device) -> tuple[float, float]:
    """GFLOP/s of the fastest single multiplication, and the share of a core in the third best window."""
    side = SIDE[device.type]
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.ones(side, side, dtype=kind, device=device) for _ in range(2))
    out = torch.empty_like(left)

    def once() -> float:
        begun = time.perf_counter()
        torch.mm(left, right, out=out)
        _wait_for(device)
        return time.perf_counter() - begun

    for _ in range(3):
        once()
    fastest, shares = float("inf"), []
    for _ in range(SLICES):
        began, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - began < SLICE_S:
            fastest = min(fastest, once())
        shares.append((time.process_time() - used) / (time.perf_counter() - began))
    share = sorted(shares)[-COUNTS]
    return 2 * side**3 / fastest / 1e9, 1.0 if device.type == "cuda" else min(1.0, share)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------- talking


def _all_reduce(group: ProcessGroup) -> float | None:
    """GB/s over each link; None for a rank that is alone."""
    world_size = group.ranks.world_size
    if world_size == 1:
        return None
    size = REDUCED_MB[group.device.type] * 1_000_000
    tensor = torch.zeros(size // 4, device=group.device)
    seconds = _fastest(group, lambda: group.all_reduce_device_(tensor))
    slowest = _gather(group, torch.tensor([seconds], dtype=torch.float64)).max().item()
    return size * 2 * (world_size - 1) / world_size / slowest / 1e9


def _exchanges(group: ProcessGroup) -> Iterator[tuple[tuple[int, int], float]]:
    """This rank's pairs, and the seconds of their exchange. All ranks start a round together, so that no pair disturbs
    the next round."""
    size = EXCHANGED_MB[group.device.type] * 1_000_000
    sent, received = (torch.zeros(size // 4, device=group.device) for _ in range(2))
    rank = group.ranks.rank
    for pairs in rounds(group.ranks.world_size):
        _meet(group)
        mine = next((pair for pair in pairs if rank in pair), None)
        if mine is not None:
            peer = mine[0] if mine[1] == rank else mine[1]
            yield mine, _fastest(group, partial(group.exchange, sent, received, peer))


def _fastest(group: ProcessGroup, action: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):  # the first one opens connections
        _wait_for(group.device)
        begun = time.perf_counter()
        action()
        _wait_for(group.device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def rounds(world_size: int) -> list[list[tuple[int, int]]]:
    """Rounds of disjoint pairs: up to ALL_PAIRS ranks every pair, by the circle method of round-robin tournaments;
    beyond it neighbours on a ring."""
    if world_size > ALL_PAIRS:
        ring = [tuple(sorted((rank, (rank + 1) % world_size))) for rank in range(world_size)]
        last = [ring[-1]] if world_size % 2 else []
        parts = [ring[0 : world_size - len(last) : 2], ring[1::2], last]
        return [[(low, high) for low, high in part] for part in parts if part]
    seats: list[int | None] = [*range(world_size), *[None] * (world_size % 2)]
    found = []
    for _ in range(len(seats) - 1):
        facing = zip(seats[: len(seats) // 2], reversed(seats), strict=False)
        found.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return found


if __name__ == "__main__":
    sys.exit(main(read_request(BenchRanksRequest, sys.argv[1:])))
