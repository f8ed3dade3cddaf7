"""Whole trainings in ranks of the pool, for the tests in this folder."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from dist_train.checkpoint.store import locate
from dist_train.commands.fingerprint import fingerprint
from dist_train.config.requests import EvaluateRequest
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
tracking: {samples: true, wandb: {mode: disabled}}
"""
ADAM = """
extends: base.yaml
model: {name: "tests.distributed.training:Normed", args: {width: 32}}
optimizer: {name: adamw, lr: 0.01}
train: {clip_norm: 0.5, ema_decay: 0.9}
"""


class Normed(nn.Module):
    """[m, C, H, W] -> [m, classes] by two residual blocks with LayerNorm and dropout: what a transformer is made of."""

    def __init__(self, shape, classes, width):
        super().__init__()
        self.first = nn.Linear(shape[1] * shape[2] * shape[0], width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1)) for _ in range(2)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, images):
        hidden = self.first(images.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)


class Aligned(torch.optim.SGD):
    """Will have no gradient at an address that is no multiple of a vector's size."""

    def step(self, closure=None):
        places = [p.grad.data_ptr() % 64 for group in self.param_groups for p in group["params"]]
        assert not any(places), f"gradients lie {places} bytes after a multiple of 64"
        return super().step(closure)


def write_configs(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE)
    (folder / "adam.yaml").write_text(ADAM)


def train(ranks, folder, config, run, *arguments):
    """One session of a run on this rank; returns its exit code."""
    from dist_train.worker import main

    argv = [str(Path(folder) / config), *arguments, "--run-dir", str(Path(folder) / run)]
    with StopFlag().handling_signals() as flag:
        return main(argv, flag)


def train_there(ranks, folder, config, run, *arguments):
    """As `python -m dist_train` in the folder, whose modules are found; but for the seconds that its imports take."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    return train(ranks, "", config, run, *arguments)


def evaluate_run(ranks, run_dir):
    """The exit code of `dist-train evaluate`."""
    from dist_train.commands.evaluate import main

    try:
        return main(EvaluateRequest(target=str(run_dir), trust=True))
    except SystemExit as end:
        return end.code


def result(run_dir):
    """Everything that must be equal: the fingerprint, all of metrics.jsonl but the clock, and the samples' log."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("time")
    return fingerprint(locate(run_dir, print)), rows, (run_dir / "samples.jsonl").read_text().splitlines()
