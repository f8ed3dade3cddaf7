"""`python -m tests.faults [CAMPAIGN …] [--count N] [--seed S] [--only K] [--keep DIR]`: see docs/faults.md."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults import (
    corruption,
    data,
    disk,
    endings,
    evaluations,
    filesystems,
    healthy,
    kills,
    launches,
    nodes,
    power_loss,
    signals,
    slowness,
    soak,
    syscalls,
)
from tests.faults.tally import Order, Tally, table

CAMPAIGNS = {
    "kills": (kills.campaign, 20),
    "launchers": (launches.launchers, 10),
    "restarts": (launches.restarts, 10),
    "nodes": (nodes.campaign, 4),
    "signals": (signals.campaign, 20),
    "syscalls": (syscalls.campaign, 0),
    "power": (power_loss.campaign, 0),
    "disk": (disk.campaign, 0),
    "filesystems": (filesystems.campaign, 0),
    "healthy": (healthy.campaign, 0),
    "evaluations": (evaluations.campaign, 12),
    "endings": (endings.campaign, 20),
    "soak": (soak.campaign, 5),
    "data": (data.campaign, 0),
    "bottlenecks": (slowness.bottlenecks, 0),
    "late": (slowness.late_ranks, 0),
    "corruption": (corruption.campaign, 200),
}
"""Each with its usual count; those with 0 do all there are."""


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    names = list(CAMPAIGNS) if "all" in arguments.campaigns else arguments.campaigns
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        for name in names:
            run, usual = CAMPAIGNS[name]
            folder = (arguments.keep or Path(temporary)).resolve() / name
            folder.mkdir(parents=True)
            count = usual if arguments.count is None else arguments.count
            tallies.append(run(Order(folder=folder, count=count, seed=arguments.seed, only=arguments.only)))
    print(table(tallies))
    if any(tally.injections == 0 for tally in tallies):
        print(f"nothing was done: there is no injection {arguments.only}", file=sys.stderr)
        return 2
    return 1 if any(tally.failures for tally in tallies) else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Fault campaigns; see docs/faults.md.")
    parser.add_argument("campaigns", nargs="*", default=["all"], choices=[*CAMPAIGNS, "all"], metavar="CAMPAIGN")
    parser.add_argument("--count", type=int, help="injections, at least; syscalls, power and disk do all there are")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--only", type=int, metavar="K", help="the injection, or run of injections, of this number")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for all files, which are left there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
