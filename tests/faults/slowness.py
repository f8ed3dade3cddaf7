"""Trainings that are slow for a known reason: is it the one that is named? Ranks that are late: which, and where?"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dist_train.report.facts import gather
from dist_train.report.time import account
from dist_train.rundir.layout import RunDir, rank_log
from tests.distributed.training import train
from tests.faults.tally import Order, Tally
from tests.rank_pool import at_work, run_ranks

CONFIG = """
name: slow
data: {name: "tests.faults.slow_parts:Points"}
model: {name: "tests.faults.slow_parts:Net"}
optimizer: {name: "tests.faults.slow_parts:Sgd", lr: 0.001}
batch: {microbatches: 6, global_size: 48}
loader: {workers: 0}
train: {duration: 40 steps, sanity_check: false}
eval: {every: 1000 steps}
checkpoint: {every: 1000 steps}
tracking: {every: 5 steps, wandb: {mode: disabled}}
"""
FOLDER = ("data={name: image_folder, root: ROOT, train: big, eval: eval, image_size: 32}",)
SMALL_FILES = ("data={name: image_folder, root: ROOT, train: small, eval: eval, image_size: 64}",)
MANY = "augment=[{name: rand_augment, num_ops: 4}]"
REASONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "slow disk": (
        "input read",
        ("data={name: 'tests.faults.slow_parts:FromSlowDisk', args: {root: ROOT/files, seconds: 0.02}}",),
    ),
    "slow decode": ("input decode", FOLDER),
    "slow augment": ("input augment", (*SMALL_FILES, MANY)),
    "small batch": ("small batch", ("model={name: cnn}", "batch={microbatches: 2, global_size: 2}")),
    "slow exchange": ("exchange", ("model={name: 'tests.faults.slow_parts:Table', args: {rows: 400000}}",)),
    "frequent saves": ("save", ("checkpoint={every: 1 steps, background: false}", "model.args.width=64")),
    "slow evaluation": (
        "evaluation",
        ("eval.every=1 steps", "data.args.eval_size=400"),
    ),
    "nothing": ("balanced", ("data.args.side=32", "model.args.width=32")),
}
"""What is slow; kind and stage of the bottleneck; and the words of the config."""
PHASES = ("loader", "forward", "backward", "optimizer")
LONG_S, SHARE = 0.2, 0.6
"""What a rank is late by, of a step: seconds, or so many times what the rest of the step takes it."""
TOLD_WITHIN_S = 240.0
BALANCED = 12
"""Trainings in which nobody is late."""


def bottlenecks(order: Order) -> Tally:
    """Each reason once, or as often as `order.count` asks for; prints what was said."""
    tally = Tally(campaign="bottlenecks", seed=order.seed)
    prepare(order.folder)
    for number in range(max(order.count, len(REASONS))):
        reason = list(REASONS)[number % len(REASONS)]
        if order.wants(number):
            tally.injections += 1
            found = named(order.folder, f"run{number}", reason)
            if found[0] != REASONS[reason][0]:
                tally.lose(number, f"{reason} was taken for {found[0]}: {found[1]}")
            print(f"{reason:<16}{'right' if found[0] == REASONS[reason][0] else 'WRONG':<6} {found[1]}", flush=True)
    return tally


def named(folder: Path, run: str, reason: str, *more: str) -> tuple[str, str]:
    """Kind and stage of the bottleneck that a training is said to have, and the sentence."""
    words = [word.replace("ROOT", str(folder)) for word in REASONS[reason][1]]
    assert set(run_ranks(train, 2, folder, "slow.yaml", run, *words, *more, timeout=900)) == {0}
    spent = account(gather(folder / run))
    assert spent is not None
    worst = spent.bottleneck
    return f"{worst.kind} {worst.stage}".strip(), worst.sentence


def prepare(folder: Path) -> None:
    (folder / "slow.yaml").write_text(CONFIG)
    draws = np.random.default_rng(0)
    for split, count, side in (("big", 64, 1200), ("small", 64, 64), ("eval", 4, 32)):
        for number in range(count):
            path = folder / split / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = draws.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((side, side)).save(path, quality=95)
    for split, source in (("train", "small"), ("evaluation", "eval")):
        (folder / "files" / split).mkdir(parents=True)
        for path in (folder / source).glob("*/*.jpg"):
            (folder / "files" / split / path.name).write_bytes(path.read_bytes())


def late_ranks(order: Order) -> Tally:
    """Every phase of every rank of 2 and 3, by 0.2 s and by a part of a step; then trainings with nobody late."""
    tally = Tally(campaign="late", seed=order.seed)
    (order.folder / "slow.yaml").write_text(CONFIG)
    cases = [
        (world, rank, phase, by)
        for by in (LONG_S, -SHARE)
        for world in (2, 3)
        for rank in range(world)
        for phase in PHASES
    ]
    silent = 0
    for number, (world, rank, phase, by) in enumerate(cases):
        if order.wants(number):
            tally.injections += 1
            said = told(order.folder, f"run{number}", world, rank, phase, by)
            if not (said and f"rank {rank} is late" in said[0] and f"in its {phase}" in said[0] and len(said) == 1):
                tally.lose(number, f"rank {rank} of {world} in its {phase} by {by}: {said or 'nothing was said'}")
    for number in range(len(cases), len(cases) + BALANCED):
        if order.wants(number):
            tally.injections += 1
            run, world = f"run{number}", 2 + number % 2
            assert set(
                run_ranks(train, world, order.folder, "slow.yaml", run, "train.duration=150 steps", timeout=900)
            ) == {0}
            said = list(_lines(order.folder / run))
            silent += not said
            if said:
                tally.lose(number, f"nobody is late: {said}")
    tally.facts["silent"] = f"{silent} of {BALANCED}"
    return tally


def told(folder: Path, run: str, world: int, rank: int, phase: str, by: float) -> list[str]:
    """What is said of late ranks first, in a training that is ended then."""
    shares = {"loader": 48 // world, "optimizer": 1}.get(phase, 6 // world)
    args = f"{{victim: {rank}, seconds: {by / shares if by > 0 else by}"
    words = {
        "loader": f"data.args={args}}}",
        "optimizer": f"optimizer.args={args}}}",
    }.get(phase, f"model.args={args}, where: {phase}}}")
    deadline = time.monotonic() + TOLD_WITHIN_S
    with at_work(train, world, str(folder), "slow.yaml", run, words, "train.duration=100000 steps") as ranks:
        while not (said := list(_lines(folder / run))) and time.monotonic() < deadline:
            assert all(one.process.is_alive() for one in ranks), [one.output("out") for one in ranks]
            time.sleep(0.2)
    return said


def _lines(run_dir: Path) -> Iterator[str]:
    log = rank_log(RunDir(run_dir).logs, 0)
    yield from (line for line in (log.read_text().splitlines() if log.exists() else ()) if " is late: " in line)
