"""A file system that fails under a whole run: each fault, at each phase, for a moment and for good.

After a moment the training must have gone on and end equal, with every row of its metrics and samples. For good, it
ends with 14 or 4 and one line, or goes on; mended and started again, it ends equal. Nothing starts from zero unasked.
"""

import itertools
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dist_train.errors import UserError
from tests.faults.fixture import Record, record
from tests.faults.lives import HANG_S, LaunchedLife, kill, undisturbed, until
from tests.faults.mounts import Mount, mounted, why_not
from tests.faults.tally import Order, Tally
from tests.faults.watch import CREATED, Watch

CONFIG = """
name: fs
data: {name: "tests.faults.slow_data:Slow", args: {seconds: 0.012, sign: "SIGN"}}
model: {name: mlp, hidden: [16]}
loader: {workers: 0}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
batch: {microbatches: 4, global_size: 12}
train: {duration: 60 steps}
eval: {every: 20 steps}
checkpoint: {every: 10 steps, keep: 3}
tracking: {every: 1 steps, samples: true, wandb: {mode: disabled}}
"""
NAME, SIGN = "fs.yaml", "evaluating"
WORDS = ("--nproc-per-node", "2", "--max-restarts", "3")
FIRST_SAVE = 10
"""The step of the first checkpoint."""
AT_ONCE = 4
"""Cases: most of their time is waiting."""
MOMENT_S = 2.0
"""How long a fault lasts that passes."""
PHASES = ("start", "step", "save", "evaluation", "restart", "stop")
GONE_ON, STOPPED, REFUSED = (0,), (0, 143), (14, 4)
QUICK = (
    ("tmpfs", "full", "restart", False),
    ("btrfs", "frozen", "save", False),
)
"""Of `make test`."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What befalls the file system, or the run directory on it, and what makes it good again.

    Attributes:
        undo: None where nothing can.
        lasts: whether it is tried for good, too.
        passes: whether it is tried for a moment.
    """

    do: Callable[[Mount], None]
    undo: Callable[[Mount], None] | None
    kinds: tuple[str, ...]
    lasts: bool = True
    passes: bool = True


def _move(mount: Mount) -> None:
    if (mount.seen / "run").exists():  # else the run has not begun
        (mount.seen / "run").rename(mount.seen / "run.bak")


def _move_back(mount: Mount) -> None:
    if (mount.seen / "run.bak").exists() and not (mount.seen / "run").exists():
        (mount.seen / "run.bak").rename(mount.seen / "run")


def _remove(mount: Mount) -> None:
    """As a person does it, and again where something was written meanwhile."""
    while (mount.seen / "run").exists():
        shutil.rmtree(mount.seen / "run", ignore_errors=True)


def _remount(mount: Mount) -> None:
    """A device that was lost stays lost for whoever had it open: this is for the next start."""
    mount.unmount()
    time.sleep(0.5)
    mount.mount()


FAULTS = {
    "full": Fault(do=Mount.fill, undo=Mount.make_room, kinds=("tmpfs", "ext4", "btrfs", "overlay")),
    "inodes": Fault(do=Mount.use_up_inodes, undo=Mount.make_room, kinds=("tmpfs", "ext4", "overlay")),
    "read-only": Fault(do=Mount.make_read_only, undo=Mount.make_writable, kinds=("tmpfs", "ext4", "btrfs", "overlay")),
    "frozen": Fault(do=Mount.freeze, undo=Mount.thaw, kinds=("ext4", "btrfs"), lasts=False),
    "device lost": Fault(do=Mount.lose_device, undo=_remount, kinds=("ext4",), passes=False),
    "unmounted": Fault(do=Mount.unmount, undo=Mount.mount, kinds=("ext4", "btrfs")),
    "moved": Fault(do=_move, undo=_move_back, kinds=("tmpfs", "ext4")),
    "removed": Fault(do=_remove, undo=None, kinds=("tmpfs", "overlay")),
}

NEEDS_A_RUN = ("unmounted", "moved", "removed")
"""Before there is a run, nobody can know that anything is missing."""

Case = tuple[str, str, str, bool]
"""File system, fault, phase, and whether it stays."""


def cases() -> Iterator[Case]:
    for name, fault in FAULTS.items():
        for kind, phase, stays in itertools.product(fault.kinds, PHASES, (False, True)):
            if phase == "start" and name in NEEDS_A_RUN:
                continue
            if (stays and fault.lasts) or (not stays and fault.passes and fault.undo is not None):
                yield kind, name, phase, stays


def campaign(order: Order) -> Tally:
    """All cases, whatever `order.count` says; `order.quick` has a few."""
    if reason := why_not():
        return Tally(campaign="filesystems", seed=order.seed, facts={"skipped": reason})
    tally = Tally(campaign="filesystems", seed=order.seed)
    _write_config(order.folder)
    expected = undisturbed(order.folder, NAME, "data.args.seconds=0.0")  # nobody is to meet it in a phase
    chosen = [one for one in enumerate(cases()) if order.wants(one[0]) and (not order.quick or one[1] in QUICK)]

    def problems_of(chosen: tuple[int, Case]) -> list[str]:
        home = order.folder / str(chosen[0])
        home.mkdir()
        _write_config(home)
        problems = collected(_case(home, chosen[1], expected))
        shutil.rmtree(home, ignore_errors=True)
        return problems

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (number, case), problems in zip(chosen, pool.map(problems_of, chosen), strict=True):
            tally.injections += 1
            for problem in problems:
                tally.lose(number, f"{' '.join(case[:3])}{' for good' if case[3] else ''}: {problem}")
    return tally


def collected(problems: Iterator[str]) -> list[str]:
    """All of them, and what kept the case from going on."""
    found = []
    try:
        found.extend(problems)
    except (AssertionError, OSError, subprocess.CalledProcessError) as error:
        found.append(f"it could not be done: {type(error).__name__}: {error}")
    return found


def _write_config(home: Path) -> None:
    (home / NAME).write_text(CONFIG.replace("SIGN", str(home / SIGN)))


def _case(home: Path, case: Case, expected: Record) -> Iterator[str]:
    kind, name, phase, stays = case
    with mounted(kind, home / "fs") as mount:
        code, said = _life(home, mount, FAULTS[name], phase, stays)
        allowed = STOPPED if phase == "stop" else GONE_ON
        if stays or phase in ("start", "stop"):
            allowed = (*allowed, *REFUSED)
        yield from _told(code, said, allowed, killed=phase == "restart")
        undo = FAULTS[name].undo
        if undo is None:
            return  # there is nothing to go on from
        if stays:
            undo(mount)
        if code != 0:
            again = _start(home, mount)
            with again:
                code = again.wait(2 * HANG_S)
            if code != 0:
                yield f"started again, it ended with {code}: {again.tail()}"
                return
        try:
            if different := expected.difference(record(mount.seen / "run")):
                yield different
        except (OSError, UserError) as error:
            yield f"no whole run is left: {error}"


def _told(code: int, said: str, allowed: tuple[int, ...], killed: bool) -> Iterator[str]:
    """What is wrong with an end.

    Args:
        killed: a rank was, which is told in a line of its own.
    """
    errors = [line for line in said.splitlines() if line.startswith("✗")]
    if code not in allowed:
        yield f"exit code {code}, not one of {allowed}: {said[-1500:]}"
    elif "Traceback" in said or len(errors) != killed + (code in REFUSED):
        yield f"exit code {code}, told in {len(errors)} lines: {said[-1500:]}"


def _start(home: Path, mount: Mount) -> LaunchedLife:
    words = (str(home / NAME), *WORDS, "--run-dir", str(mount.point / "run"))
    return LaunchedLife(home, mount.folder.name, *words, before=mount.inside, run_dir=mount.seen / "run")


def _life(home: Path, mount: Mount, fault: Fault, phase: str, stays: bool) -> tuple[int, str]:
    """Exit code of the launcher, and what it said."""
    if phase == "start":
        fault.do(mount)
    with _start(home, mount) as life:
        if phase != "start":
            wait_for(phase, home / SIGN, mount.seen / "run", life, FIRST_SAVE + 2)
            ranks = life.processes()["rank"]  # as the files in the run directory have them
            fault.do(mount)
            if phase == "restart":
                kill(ranks[1:])
        if phase == "stop":
            life.process.send_signal(signal.SIGTERM)
        if not stays and fault.undo is not None:
            life.ended_within(MOMENT_S)
            fault.undo(mount)
        try:
            code = life.wait(2 * HANG_S)
        except TimeoutError as error:
            code = -1
            life.said.write_text(f"{life.tail()}\n{error}")
            if stays and fault.undo is not None:  # what is stuck in the kernel could not be killed
                fault.undo(mount)
        return code, life.said.read_text(errors="replace")


def wait_for(phase: str, sign: Path, run: Path, life: LaunchedLife, count: int) -> None:
    """Until the training has so many steps behind it, and is then in this phase."""
    assert until(lambda: rows(run) >= count or life.ended(), 2 * HANG_S), life.tail()
    if phase == "save":
        with Watch(run / "checkpoints") as watch:
            watch.wait_for(CREATED, ".tmp-", 1, [], HANG_S)
    elif phase == "evaluation":
        sign.unlink(missing_ok=True)
        until(lambda: sign.exists() or life.ended(), HANG_S)


def rows(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_text().count('"kind": "train"')
    except OSError:
        return 0
