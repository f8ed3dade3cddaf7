"""Whole trainings in ranks of the pool, for the tests in this folder."""

import json
from pathlib import Path

from dist_train.checkpoint.store import locate
from dist_train.commands.fingerprint import fingerprint
from dist_train.control.stop import StopFlag

BASE = """
name: t
data: {name: digits}
model: {name: cnn, width: 8, dropout: 0.2}
augment: [{name: random_crop, padding: 1}, {name: horizontal_flip}]
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 1.0e-4}
batch: {microbatches: 8, global_size: 64}
train: {duration: 1 epochs}
eval: {every: 11 steps}
checkpoint: {every: 100 steps}
tracking: {wandb: {mode: disabled}}
"""
ADAM = """
extends: base.yaml
model: {name: mlp, hidden: [32]}
optimizer: {name: adamw, lr: 0.01}
train: {clip_norm: 0.5, ema_decay: 0.9}
"""


def write_configs(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE)
    (folder / "adam.yaml").write_text(ADAM)


def train(ranks, folder, config, run, *arguments):
    """One life of a run on this rank; returns its exit code."""
    from dist_train.worker import main

    argv = [str(Path(folder) / config), *arguments, "--run-dir", str(Path(folder) / run)]
    with StopFlag().handling_signals() as flag:
        return main(argv, flag)


def result(run_dir):
    """Everything that must be equal: the fingerprint, and all of metrics.jsonl but the clock."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("time")
    return fingerprint(locate(run_dir, print)), rows
