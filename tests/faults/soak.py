"""One long run, and something befalls it every few seconds: it ends in the same bits, and nothing grows meanwhile."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from dist_train.errors import UserError
from tests.faults.fixture import record
from tests.faults.lives import HANG_S, LaunchedLife, kill, undisturbed, until
from tests.faults.mounts import Mount, mounted, why_not
from tests.faults.tally import Order, Tally

CONFIG = """
name: soak
data: {name: "tests.faults.slow_data:Slow", args: {seconds: 0, sign: "SIGN"}}
model: {name: mlp, hidden: [16]}
loader: {workers: 1}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
schedule: {name: constant}
batch: {microbatches: 4, global_size: 12}
train: {duration: STEPS steps, sanity_check: false}
eval: {every: 200 steps}
checkpoint: {every: 20 steps, keep: 3}
tracking: {every: 5 steps, samples: true, wandb: {mode: disabled}}
"""
NAME = "soak.yaml"
ITEM_S = 0.02
"""Seconds that an item takes in the run that things befall; six of them are a rank's step."""
STEPS_A_MINUTE = 250
"""About half of what it could do undisturbed."""
BETWEEN_S = (10.0, 30.0)
GROWTH = 1.15
"""Of the launcher's memory, from its first generation on."""


def campaign(order: Order) -> Tally:
    """A run of about `order.count` minutes."""
    if reason := why_not():
        return Tally(campaign="soak", seed=order.seed, facts={"skipped": reason})
    tally = Tally(campaign="soak", seed=order.seed)
    steps = str(STEPS_A_MINUTE * order.count)
    text = CONFIG.replace("SIGN", str(order.folder / "evaluating")).replace("STEPS", steps)
    (order.folder / NAME).write_text(text)
    expected = undisturbed(order.folder, NAME, "loader.workers=0", seconds=60.0 * (1 + order.count))
    with mounted("ext4", order.folder / "fs") as mount:
        dice = order.dice("soak")
        for problem in _soak(order, mount, dice, tally):
            tally.lose(0, problem)
        try:
            if different := expected.difference(record(mount.seen / "run")):
                tally.lose(0, different, unequal=True)
        except (OSError, UserError) as error:
            tally.lose(0, f"no whole run is left: {error}")
        tally.facts["generations"] = len(list((mount.seen / "run/generations").iterdir()))
    return tally


def _soak(order: Order, mount: Mount, dice: random.Random, tally: Tally) -> Iterator[str]:
    began, lives, is_over = time.monotonic(), 0, False
    limit = 60.0 * (3 * order.count + 5)
    while not is_over:
        lives += 1
        with _start(order.folder, mount, lives) as life:
            until(lambda life=life: bool(life.processes()["rank"]) or life.ended(), HANG_S)  # type: ignore[misc]
            first = _size(life.process.pid)
            while not life.ended_within(dice.uniform(*BETWEEN_S)):
                if time.monotonic() - began > limit:
                    yield f"not over after {limit:g} s: {life.tail()}"
                    return
                name = dice.choice(list(FAULTS))
                tally.injections += 1
                tally.facts[name] = int(str(tally.facts.get(name, 0))) + 1
                last = _size(life.process.pid)
                if first and last and (last[0] > GROWTH * first[0] or last[1] > first[1] + 3):
                    yield f"life {lives}: the launcher had {first} kB and descriptors, and has {last}"
                FAULTS[name](life, mount)
            is_over = life.process.returncode == 0
            if life.process.returncode not in (0, 143, -signal.SIGKILL):
                yield f"life {lives} ended with {life.process.returncode}: {life.tail()}"
                return
    tally.facts |= {"lives": lives, "minutes": round((time.monotonic() - began) / 60, 1)}
    if left := [
        one for one in os.listdir(order.folder / "tmp") if not one.startswith("torchinductor_")
    ]:  # torch's cache
        yield f"left in TMPDIR: {left}"
    if odd := [one.name for one in (mount.seen / "run").iterdir() if one.name.startswith(".tmp")]:
        yield f"left in the run directory: {odd}"


def _start(home: Path, mount: Mount, number: int) -> LaunchedLife:
    words = [str(home / NAME), "--run-dir", str(mount.point / "run"), "--nproc-per-node", "2"]
    (home / "tmp").mkdir(exist_ok=True)
    words += ["--max-restarts", "1000", f"data.args.seconds={ITEM_S}", "--allow-change", "data.args.seconds"]
    before = (*mount.inside, "env", f"TMPDIR={home / 'tmp'}")
    return LaunchedLife(home, f"life{number}", *words, before=before, run_dir=mount.seen / "run")


def _size(pid: int) -> tuple[int, int] | None:
    """Resident memory in kB, and open descriptors; None where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        return found, len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, StopIteration):
        return None


def _pids(life: LaunchedLife, name: str) -> list[int]:
    return life.processes()[name][:1]


def _stop(life: LaunchedLife, _: Mount) -> None:
    ranks = _pids(life, "rank")
    kill(ranks, signal.SIGSTOP)
    life.ended_within(5.0)
    kill(ranks, signal.SIGCONT)


def _freeze(life: LaunchedLife, mount: Mount) -> None:
    mount.freeze()
    life.ended_within(5.0)
    mount.thaw()


def _fill(life: LaunchedLife, mount: Mount) -> None:
    mount.fill()
    life.ended_within(3.0)
    mount.make_room()


FAULTS = {
    "rank killed": lambda life, mount: kill(_pids(life, "rank")),
    "loader killed": lambda life, mount: kill(_pids(life, "loader")),
    "launcher killed": lambda life, mount: kill([life.process.pid]),
    "stopped and started": lambda life, mount: kill([life.process.pid], signal.SIGTERM),
    "saved": lambda life, mount: kill([life.process.pid], signal.SIGUSR2),
    "rank stopped for 5 s": _stop,
    "disk frozen for 5 s": _freeze,
    "disk full for 3 s": _fill,
}
