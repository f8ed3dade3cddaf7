"""What do 64 to 10,000 ranks cost, and what would break first? docs/scale.md has a run of it.

    python -m benchmarks.scale [--ranks 64,512,4096,10000] [--per-node 8] [--parameters 1e9] [--node-gb-s 12.5]

First the cost of one message, look-up, import and the like, measured here with real processes; then, for each number of
ranks, how many of them a start and a step take. The numbers come from the functions that choose in a training (levels,
shares, nodes of the tree), the seconds from the costs. "Before" is one level, connections from all to all, and rings.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.links import bytes_between, connections, sent_by_link
from dist_train.config.schema import Cnn, DistributedConfig, ImageFolder, RunConfig
from dist_train.config.shares import share
from dist_train.parallel import process_group
from dist_train.parallel.exchange import _PIECE, Exchange, Lanes, level_sizes
from dist_train.parallel.process_group import ProcessGroup
from dist_train.parallel.ranks import Ranks
from dist_train.parallel.tree import cover
from dist_train.report.budget import COLUMNS
from launch.node.fork_server import OFTEN
from launch.plan.requirements import Requirements
from tests.rank_pool import run_ranks

ROOT = Path(__file__).parents[1]
SMALL, LARGE, TIMES = 8, 64 << 20, 200
FLUSHED = 50
"""Steps whose metrics are read at once, for the size of the table."""


# ---------------------------------------------------------------- in the ranks


def _on_nodes(ranks: Ranks, per_node: int) -> Ranks:
    os.environ |= {"LOCAL_RANK": str(ranks.rank % per_node), "LOCAL_WORLD_SIZE": str(per_node)}
    os.environ |= {"GROUP_RANK": str(ranks.rank // per_node)}
    return Ranks.from_environment()


def _store() -> dist.TCPStore:
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def fastest(work: Callable[[], Any], times: int) -> float:
    """Seconds of the fastest tenth: others work on the machine."""
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun)
    return sorted(took)[times // 10]


def message(ranks: Ranks) -> tuple[float, float]:
    """Seconds of one small message, and bytes a second of a large one. A ring of two ranks sends two, one by one."""
    with ProcessGroup(ranks, DistributedConfig()) as group:
        small, large = torch.zeros(SMALL, dtype=torch.uint8), torch.zeros(LARGE, dtype=torch.uint8)
        one = fastest(lambda: group.all_reduce_host_(small), TIMES) / 2
        return one, LARGE / fastest(lambda: group.all_reduce_host_(large), 10)


def busy(ranks: Ranks) -> float:
    """Seconds of processor time that a rank spends on one small message of an all-to-all."""
    with ProcessGroup(ranks, DistributedConfig()):
        out, given = torch.zeros(ranks.world_size), torch.zeros(ranks.world_size)
        begun = time.process_time()
        for _ in range(TIMES):
            dist.all_to_all_single(out, given)
        return (time.process_time() - begun) / TIMES / (ranks.world_size - 1)


def connect(ranks: Ranks, many: int) -> tuple[float, int, int]:
    """Until all groups are there: processor time, connections, bytes from and to the store."""
    from torch.distributed.elastic.utils import store as elastic

    process_group.MANY = many
    elastic.barrier(_store(), ranks.world_size, "here")
    begun = time.process_time()
    with ProcessGroup(_on_nodes(ranks, 8), DistributedConfig()) as group:
        group.for_reduction()
        took = time.process_time() - begun
        group.barrier()
        held = connections()
        with_store = sum(one.sent + one.received for one in held if one.ends[1][1] == int(os.environ["MASTER_PORT"]))
        group.barrier()
        return took, len(held), with_store


def meet(ranks: Ranks) -> float:
    """Seconds of what torch's agents do before they start ranks, and when these have ended."""
    from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
    from torch.distributed.elastic.utils import store as elastic

    store, mine, count = _store(), SimpleNamespace(role="default", local_world_size=8), ranks.world_size
    elastic.barrier(store, count, "here")
    begun = time.monotonic()
    SimpleElasticAgent._assign_worker_ranks(None, store, ranks.rank, count, mine)  # type: ignore[arg-type]
    elastic.barrier(store, count, "ended")
    return time.monotonic() - begun


def look_up(ranks: Ranks) -> float:
    """Seconds of one look-up in the store, while the other ranks make theirs."""
    store = _store()
    store.set("key", "value")
    return fastest(lambda: store.get("key"), 5 * TIMES)


def heartbeat(ranks: Ranks) -> float:
    """Seconds of one beat; it goes into memory that the node's launcher shares."""
    import mmap

    from dist_train.launch.rank.collectives import CollectiveLog
    from dist_train.launch.rank.heartbeat import HeartbeatWriter
    from dist_train.launch.rank.page import SIZE
    from dist_train.launch.torch_patches import wrap_collective

    writer = HeartbeatWriter(mmap.mmap(-1, SIZE), lambda page: CollectiveLog(page, wrap_collective))
    return fastest(lambda: writer.beat("step", 1), 10 * TIMES)


def traffic(ranks: Ranks, per_node: int, numbers: int) -> list[Any]:
    """Connections before and after each of: a sum in one level, in levels, in a ring; a broadcast before and now."""
    ranks = _on_nodes(ranks, per_node)
    shares = [share(rank, ranks.world_size, ranks.world_size) for rank in range(ranks.world_size)]
    with ProcessGroup(ranks, DistributedConfig()) as group:
        levels, value = group.for_reduction(), torch.ones(numbers)
        one_level = Lanes(groups=(group._new_group(None, "gloo", process_group.HOST_TIMEOUT),), sizes=(len(shares),))
        works = [
            lambda: Exchange(one_level, ranks.rank, shares, len(shares)).mean_into(value, [value]),
            lambda: Exchange(levels, ranks.rank, shares, len(shares)).mean_into(value, [value]),
            lambda: dist.all_reduce(value),
            lambda: dist.broadcast(value, 0),
            lambda: group.broadcast_tensors({"it": value} if ranks.is_first else None),
        ]
        group.broadcast_tensors({"it": value[:1]} if ranks.is_first else None)  # which makes its groups
        group.barrier()
        seen = [connections()]
        for work in works:
            work()
            group.barrier()
            seen.append(connections())
            group.barrier()
        return seen


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds and bytes of one of each, on this machine."""

    message_s: float
    busy_s: float
    loopback: float
    look_up_s: float
    agent_s: float
    beat_s: float
    import_s: float
    import_files: int
    import_bytes: int
    line_s: float

    def show(self) -> None:
        print("| measured here | |\n|---|---|")
        print(f"| a small message of gloo between two ranks | {1e6 * self.message_s:.0f} µs |")
        print(f"| processor time of a rank for one, in an all-to-all of 8 | {1e6 * self.busy_s:.0f} µs |")
        print(f"| a sum of 64 MiB over two ranks | {self.loopback / 1e9:.1f} GB/s |")
        print(f"| a look-up in the store, with 8 at the same time | {1e6 * self.look_up_s:.0f} µs |")
        print(f"| one agent more, until all have met | {1e3 * self.agent_s:.1f} ms |")
        print(f"| a heartbeat | {1e6 * self.beat_s:.1f} µs |")
        libraries = f"{self.import_files:,} files, {self.import_bytes / 1e6:,.0f} MB"
        print(f"| imports of a fork server | {self.import_s:.1f} s of a processor, {libraries} |")
        print(f"| a line through the relay, to log and console | {1e6 * self.line_s:.0f} µs |\n", flush=True)


_IMPORT = """
import importlib, os, sys, time
opened = [0]
sys.addaudithook(lambda event, _: event == "open" and opened.__setitem__(0, opened[0] + 1))
begun = time.process_time()
import torch
from launch.torch_patches import install_lazy_dynamo
install_lazy_dynamo()
for name in sys.argv[1:]:
    importlib.import_module(name)
spent, files, read, in_library = time.process_time() - begun, set(), int(open("/proc/self/io").read().split()[1]), False
for line in open("/proc/self/smaps"):
    words = line.split()
    if "-" in words[0]:
        in_library = ".so" in words[-1]
        files |= {words[-1]} if in_library else set()
    elif in_library and words[0] == "Rss:":
        read += 1024 * int(words[1])
print(spent, opened[0] + len(files), read)
"""


def importing() -> tuple[float, int, int]:
    """Of a fork server: processor time, files opened, bytes read, and of libraries the pages that were touched."""
    config = RunConfig(data=ImageFolder(root="images", eval_fraction=0.1), model=Cnn())
    modules = [*OFTEN, *Requirements.of(config).preload]
    told = subprocess.run(
        [sys.executable, "-c", _IMPORT, *modules], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    seconds, files, read = told.stdout.split()
    return float(seconds), int(files), int(read)


def relayed(lines: int = 300_000) -> float:
    """Seconds that a launch takes longer for each line that a rank prints, to its log and the console."""

    def run(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "prints.py")
            script.write_text(f"for number in range({count}):\n    print('step', number, 'loss', 0.123456789)\n")
            launch = [sys.executable, "-m", "dist_train.launch", "run", "--nproc-per-node", "1"]
            begun = time.monotonic()
            subprocess.run([*launch, "--run-dir", f"{folder}/run", str(script)], stdout=subprocess.DEVNULL, check=True)
            return time.monotonic() - begun

    return max(0.0, run(lines) - run(1)) / lines


def measure() -> Measured:
    message_s, loopback = run_ranks(message, 2)[0]
    agents = {count: max(run_ranks(meet, count, timeout=300)) for count in (8, 32)}
    import_s, import_files, import_bytes = importing()
    return Measured(
        message_s=message_s,
        busy_s=min(run_ranks(busy, 8, timeout=300)),
        loopback=loopback,
        look_up_s=min(run_ranks(look_up, 8, timeout=300)),
        agent_s=max(0.0, agents[32] - agents[8]) / 24,
        beat_s=run_ranks(heartbeat, 1)[0],
        import_s=import_s,
        import_files=import_files,
        import_bytes=import_bytes,
        line_s=relayed(),
    )


def show_links() -> None:
    """MB that leave the nodes in one sum or broadcast of a million numbers, by the kernel's count."""
    print("| MB between nodes, counted | one level | levels | ring | broadcast before | broadcast now |")
    print("|---|---|---|---|---|---|")
    for nodes, per_node in ((2, 2), (2, 4), (4, 2)):
        of_ranks = run_ranks(traffic, nodes * per_node, per_node, 1 << 20, timeout=300)
        counts = [bytes_between(sent_by_link(held), per_node) / 2**20 for held in zip(*of_ranks, strict=True)]
        steps = [after - before for before, after in zip(counts, counts[1:], strict=False)]
        print(f"| {nodes} nodes of {per_node} | " + " | ".join(f"{step:.1f}" for step in steps) + " |")


def show_connections(most: int) -> None:
    """What it takes to open all groups of W real ranks, connected all to all, or as more than MANY are."""
    print(
        "\n| ranks | | processor time of a rank | its connections | between it and the store |\n|---|---|---|---|---|"
    )
    for world_size in (8, 16, 32, 64, 128):
        for name, many in (("all to all", 10**6), ("as needed", 2)):
            if world_size > most or (many > world_size > 64):
                continue
            work, held, stored = zip(*run_ranks(connect, world_size, many, timeout=600), strict=True)
            row = f"{sum(work) / world_size:.2f} s | {max(held)} | {sum(stored) / world_size / 1000:.0f} KB"
            print(f"| {world_size} | {name} | {row} |", flush=True)


# ---------------------------------------------------------------- what follows for many ranks


def sent_by_node(world_size: int, per_node: int, sizes: Sequence[int], numbers: float) -> float:
    """Numbers that one node sends to others in one sum, on average; as Exchange._in_chunks sends them, with V = W.

    A level's members send each other a chunk of each node of the tree that they have (to begin with, of all numbers),
    and then the sum's chunk that they have added.
    """
    total, block, size = 0.0, 1, numbers
    for members in sizes:
        away = members - min(members, max(1, per_node // block))
        known = (
            [len(cover(range(at, at + block), (0, world_size))) for at in range(0, world_size, block)] if away else []
        )
        total += sum(block * away * (nodes + 1) * size / members for nodes in known)
        block, size = block * members, size / members
    return total / (world_size / per_node)


def messages(sizes: Sequence[int]) -> int:
    """That a rank sends in a sum of one piece: to all others of its group, twice, on each level."""
    return sum(2 * (members - 1) for members in sizes)


def pieces(numbers: float) -> int:
    """Exchange.mean_into adds so many bytes at a time."""
    return math.ceil(numbers * 4 / _PIECE)


def rows(world_size: int, per_node: int, numbers: float, measured: Measured, node_bytes_s: float) -> Iterator[str]:
    """Each row of the table, for one number of ranks."""
    nodes = world_size // per_node
    sizes = level_sizes([(rank % per_node, per_node) for rank in range(world_size)])
    many, ring, tree = world_size > process_group.MANY, 2 * (world_size - 1), math.ceil(math.log2(world_size))
    one, two = (world_size,), (per_node, nodes)
    yield " × ".join(map(str, sizes))
    gb = [4e-9 * sent_by_node(world_size, per_node, which, numbers) for which in (one, sizes)]
    yield f"{gb[0]:.1f} → {gb[1]:.1f} ({4e-9 * 2 * numbers * (nodes - 1) / nodes:.1f})"
    yield f"{1e9 * gb[0] / node_bytes_s:.2f} → {1e9 * gb[1] / node_bytes_s:.2f}"
    told = [messages(which) * pieces(numbers) for which in (one, two, sizes)]
    yield " → ".join(f"{count:,}" for count in told)
    yield " → ".join(f"{count * measured.busy_s:.2f}" for count in told)
    in_turn = messages(sizes) if many else ring
    yield f"{ring:,} → {in_turn:,}"
    yield f"{1e3 * ring * measured.message_s:.0f} → {1e3 * in_turn * measured.message_s:.0f}"
    mesh = 1 + 2 * (world_size - 1) + messages(two) // 2
    lazily = 1 + 2 + 2 + 3 * tree + messages(sizes) // 2 + 2 * 2 * len(sizes)
    held = [mesh, lazily if many else mesh]
    yield " → ".join(f"{count:,}" for count in held)
    asked = [world_size * (count - 1) for count in held]
    yield " → ".join(f"{count:,}" for count in asked)
    yield " → ".join(f"{count * measured.look_up_s / 8:.1f}" for count in asked)
    yield f"{world_size + nodes:,}"
    yield f"{nodes * measured.agent_s:.1f}"
    yield f"{world_size * measured.import_bytes / 1e9:,.0f} → {nodes * measured.import_bytes / 1e9:,.0f}"
    yield f"{world_size * measured.import_files:,} → {nodes * measured.import_files:,}"
    state = 12 * numbers
    yield f"{world_size * state / 1e9:,.0f} → {state / 1e9:,.0f}"
    yield f"{(world_size - per_node) * state / 1e9:,.0f} → {(nodes - 1) * state / 1e9:,.0f}"
    yield f"{sum(math.ceil(math.log2(members)) for members in sizes[1:]) * state / node_bytes_s:.0f}"
    yield f"{(FLUSHED * world_size * 4 + world_size * len(COLUMNS)) * 8 / 1e6:.1f}"
    yield f"{world_size:,} → 1"


ROWS = (
    "levels of the exchange",
    "GB out of a node in a step (least)",
    "s of that",
    "messages of a rank in a step: one level, two, now",
    "s of processor time for them",
    "messages one after another, to agree on a stop",
    "ms of that",
    "connections of a rank",
    "look-ups in the store to connect",
    "s of that",
    "connections of the store",
    "s until the agents have met",
    "GB of imports from shared storage",
    "files opened for them",
    "GB of a checkpoint read",
    "GB of it between nodes",
    "s until the last node has it",
    f"MB of metrics added up every {FLUSHED} steps",
    "ranks on the console",
)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", default="64,512,4096,10000", help="default 64,512,4096,10000")
    parser.add_argument("--per-node", type=int, default=8, help="ranks on a node (default 8)")
    parser.add_argument("--parameters", type=float, default=1e9, help="of the model, in fp32 (default 1e9)")
    parser.add_argument("--node-gb-s", type=float, default=12.5, help="GB/s out of a node (default 12.5: 100 Gbit/s)")
    parser.add_argument("--most-ranks", type=int, default=128, help="real ones that are connected (default 128)")
    args = parser.parse_args(argv)
    measured = measure()
    measured.show()
    show_links()
    show_connections(args.most_ranks)
    counts = [int(one) for one in args.ranks.split(",")]
    columns = [[*rows(count, args.per_node, args.parameters, measured, 1e9 * args.node_gb_s)] for count in counts]
    print("\n| ranks | " + " | ".join(f"{count:,}" for count in counts) + " |\n|---" + "|---" * len(counts) + "|")
    for name, *row in zip(ROWS, *columns, strict=True):
        print(f"| {name} | " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
