"""A signal in the middle of an evaluation, over and over: given up at once, saved, and repeated by the next life."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dist_train.errors import UserError
from dist_train.rundir.layout import RunDir
from tests.faults.fixture import Record, record
from tests.faults.lives import HANG_S, LaunchedLife, undisturbed, until
from tests.faults.tally import Order, Tally

CONFIG = """
name: evaluations
data: {name: "tests.faults.slow_data:Slow", args: {seconds: 0.02, sign: "SIGN"}}
model: {name: mlp, hidden: [16]}
loader: {workers: 0}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
batch: {microbatches: 4, global_size: 12}
train: {duration: STEPS steps, sanity_check: false}
eval: {every: 3 steps, batch_size: 2}
checkpoint: {every: 100 steps}
tracking: {every: 1 steps, samples: true, wandb: {mode: disabled}}
"""
NAME, SIGN = "evaluations.yaml", "evaluating"
SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}
RUNS = 5
"""At once."""


def campaign(order: Order) -> Tally:
    """`order.count` signals, at least, shared among RUNS runs."""
    tally = Tally(campaign="evaluations", seed=order.seed)
    each = -(-order.count // RUNS)
    steps = str(3 * (each + 2))
    _write_config(order.folder, steps)
    expected = undisturbed(order.folder, NAME)
    chosen = [number for number in range(RUNS) if order.wants(number)]
    took: list[float] = []
    with ThreadPoolExecutor(RUNS) as pool:
        found = pool.map(lambda number: _run(order, number, each, steps, expected, took), chosen)
        for number, problems in zip(chosen, found, strict=True):
            tally.injections += each
            for problem in problems:
                tally.lose(number, problem, unequal="differs" in problem)
    took.sort()
    if took:
        tally.facts = {"median s to the save": round(took[len(took) // 2], 2), "slowest": round(took[-1], 2)}
    return tally


def _write_config(home: Path, steps: str) -> None:
    (home / NAME).write_text(CONFIG.replace("SIGN", str(home / SIGN)).replace("STEPS", steps))


def _run(order: Order, number: int, signals: int, steps: str, expected: Record, took: list[float]) -> list[str]:
    """What went wrong with a run whose evaluations are all given up once."""
    home, dice = order.folder / str(number), order.dice("evaluations", number)
    home.mkdir()
    _write_config(home, steps)
    for place in range(signals):
        kind, ranks = dice.choice(list(SIGNALS)), str(dice.choice((1, 2)))
        done = _evaluations(home)
        with _life(home, place, ranks) as life:
            if place:  # it begins with the one that was given up
                until(lambda done=done, life=life: _evaluations(home) > done or life.ended(), HANG_S)  # type: ignore
            (home / SIGN).unlink(missing_ok=True)
            until(lambda life=life: (home / SIGN).exists() or life.ended(), HANG_S)  # type: ignore[misc]
            life.ended_within(dice.random() * 0.5)
            target = life.process.pid if dice.random() < 0.5 else dice.choice(life.processes()["rank"])
            asked = time.time()
            os.kill(target, kind)
            try:
                code = life.wait()
            except TimeoutError as error:
                return [f"signal {place}: {error}: {life.tail()}"]
            if code != SIGNALS[kind]:
                return [f"signal {place}: exit code {code} after {kind.name}: {life.tail()}"]
        newest = max(RunDir(home / "run").checkpoints.glob("step-*"), key=lambda path: path.name)
        took.append(newest.stat().st_ctime - asked)
    with _life(home, signals, "2") as life:
        if (code := life.wait(2 * HANG_S)) != 0:
            return [f"left alone, it ended with {code}: {life.tail()}"]
    try:
        different = expected.difference(record(home / "run"))
    except (OSError, UserError) as error:
        different = f"no whole run is left: {error}"
    return [different] if different else []


def _evaluations(home: Path) -> int:
    try:
        return RunDir(home / "run").metrics.read_text().count('"kind": "evaluation"')
    except OSError:
        return 0


def _life(home: Path, place: int, ranks: str) -> LaunchedLife:
    return LaunchedLife(home, f"life{place}", NAME, "--run-dir", "run", "--nproc-per-node", ranks, run_dir=home / "run")
