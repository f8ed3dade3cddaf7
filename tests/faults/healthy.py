"""Healthy runs in which something takes long, for once: none of them may be ended, and each ends in the same bits.

They have no --hang-timeout: what nothing was said about has to do.
"""

import contextlib
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dist_train.errors import UserError
from tests.faults.filesystems import collected, wait_for
from tests.faults.fixture import Record, record
from tests.faults.lives import LaunchedLife, kill, undisturbed
from tests.faults.mounts import Mount, mounted, why_not
from tests.faults.tally import Order, Tally

CONFIG = """
name: odd
data: {name: "tests.faults.slow_data:LongItem", args: {sign: "SIGN"}}
model: {name: mlp, hidden: [16]}
loader: {workers: 0}
optimizer: {name: "tests.faults.slow_data:LongStep", lr: 0.1}
batch: {microbatches: 4, global_size: 12}
train: {duration: 20 steps, sanity_check: false}
eval: {every: 5 steps, batch_size: 6}
checkpoint: {every: 5 steps, keep: 3}
tracking: {every: 1 steps, samples: true, wandb: {mode: disabled}}
"""
NAME, SIGN = "odd.yaml", "evaluating"
FIRST_SAVE = 5
"""The step of the first checkpoint."""
LONG_S = 20.0
STOPPED_S = 60.0
PATIENCE_S = 300.0
AT_ONCE = 5
"""Cases: most of their time is waiting."""
CPU = Path("/sys/fs/cgroup/cpu")


@dataclass(frozen=True, kw_only=True)
class Odd:
    """What takes long.

    Attributes:
        words: of the config.
        phase: that `do` waits for: step, save or evaluation.
        do: to the life, and what ends it again; None where the words do.
        kind: of the file system that the run lies on, where that matters.
    """

    words: tuple[str, ...] = ()
    phase: str = "step"
    do: Callable[[LaunchedLife, Mount | None], None] | None = None
    kind: str | None = None


def _freeze(life: LaunchedLife, mount: Mount | None) -> None:
    assert mount is not None
    mount.freeze()
    life.ended_within(LONG_S)
    mount.thaw()


def _stop(who: tuple[str, ...], seconds: float, life: LaunchedLife, _: Mount | None) -> None:
    found = life.processes()
    pids = [pid for name in who for pid in found[name]]
    assert kill(pids, signal.SIGSTOP), who
    life.ended_within(seconds)
    kill(pids, signal.SIGCONT)


def _throttle(life: LaunchedLife, _: Mount | None) -> None:
    """The whole launch gets a fiftieth of a core for a while."""
    group = CPU / f"dist-train-test-{uuid.uuid4()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("2000")
        for pid in life.left():
            with contextlib.suppress(OSError):
                (group / "cgroup.procs").write_text(str(pid))
        life.ended_within(STOPPED_S)
    finally:
        (group / "cpu.cfs_quota_us").write_text("-1")
        while pids := (group / "cgroup.procs").read_text().split():
            for pid in pids:
                with contextlib.suppress(OSError):
                    (CPU / "cgroup.procs").write_text(pid)
        group.rmdir()


TREE = ("launcher", "server", "agent", "rank")
ODDITIES = {
    "training item": Odd(words=("data.args.split_of_it=train",)),
    "training item in a loading process": Odd(words=("data.args.split_of_it=train", "loader.workers=1")),
    "evaluation item": Odd(words=("data.args.split_of_it=evaluation",)),
    "evaluation item on rank 0": Odd(words=("data.args.split_of_it=evaluation", "eval.mode=rank0")),
    "data set": Odd(words=("data.args.split_of_it=init",)),
    "first step": Odd(words=("optimizer.args.step_of_it=1",)),
    "step": Odd(words=("optimizer.args.step_of_it=7",)),
    "step of one rank": Odd(words=("optimizer.args.step_of_it=7", "optimizer.args.rank=1")),
    "writing process": Odd(
        words=("checkpoint.background=true", "data.args.long=0"), do=partial(_stop, ("writer",), LONG_S)
    ),
    "loading process": Odd(words=("loader.workers=1", "loader.prefetch=1"), do=partial(_stop, ("loader",), LONG_S)),
    "one rank stopped": Odd(do=lambda life, mount: _stop_one(life)),
    "all ranks stopped": Odd(do=partial(_stop, ("rank",), STOPPED_S)),
    "launcher stopped": Odd(do=partial(_stop, ("launcher",), STOPPED_S)),
    "all stopped": Odd(do=partial(_stop, TREE, STOPPED_S)),
    "a fiftieth of a core": Odd(do=_throttle),
    **{
        f"{kind} frozen in {phase}": Odd(phase=phase, do=_freeze, kind=kind)
        for kind, phase in (
            ("ext4", "step"),
            ("ext4", "save"),
            ("ext4", "evaluation"),
            ("btrfs", "save"),
            ("btrfs", "step"),
        )
    },
}


def _stop_one(life: LaunchedLife) -> None:
    pid = life.processes()["rank"][1]
    os.kill(pid, signal.SIGSTOP)
    life.ended_within(LONG_S)
    kill([pid], signal.SIGCONT)


def campaign(order: Order) -> Tally:
    """All oddities, whatever `order.count` says."""
    if (reason := why_not()) or not (CPU / "cpu.cfs_quota_us").exists():
        return Tally(campaign="healthy", seed=order.seed, facts={"skipped": reason or f"no {CPU}"})
    tally = Tally(campaign="healthy", seed=order.seed)
    _write_config(order.folder)
    expected = undisturbed(order.folder, NAME)
    chosen = [one for one in enumerate(ODDITIES) if order.wants(one[0])]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda one: collected(_case(order.folder / str(one[0]), ODDITIES[one[1]], expected)), chosen)
        for (number, name), problems in zip(chosen, found, strict=True):
            tally.injections += 1
            for problem in problems:
                tally.lose(number, f"{name}: {problem}", unequal="differs" in problem)
    return tally


def _write_config(home: Path) -> None:
    (home / NAME).write_text(CONFIG.replace("SIGN", str(home / SIGN)))


def _case(home: Path, odd: Odd, expected: Record) -> Iterator[str]:
    home.mkdir()
    _write_config(home)
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(mounted(odd.kind, home / "fs")) if odd.kind else None
        place, seen = (mount.point / "run", mount.seen / "run") if mount else (home / "run", home / "run")
        words = (str(home / NAME), "--run-dir", str(place), "--nproc-per-node", "2", *odd.words)
        life = LaunchedLife(home, "odd", *words, before=mount.inside if mount else (), run_dir=seen)
        with life:
            if odd.do is not None:
                wait_for(odd.phase, home / SIGN, seen, life, FIRST_SAVE + 1)
                odd.do(life, mount)
            try:
                code = life.wait(PATIENCE_S)
            except TimeoutError as error:
                yield f"{error}: {life.tail()}"
                return
        if code != 0:
            yield f"it was ended with {code}: {life.tail()}"
            return
        try:
            if different := expected.difference(record(seen)):
                yield different
        except (OSError, UserError) as error:
            yield f"no whole run is left: {error}"
    shutil.rmtree(home, ignore_errors=True)
