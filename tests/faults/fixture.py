"""The run that everything is done to, and the record of the same run when nothing is done to it.

Small steps and many saves: convolution, BatchNorm, dropout, augmentation, SGD with momentum, a falling learning rate,
a loading process per rank, eight microbatches whatever the number of ranks.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_train.checkpoint.store import locate
from dist_train.commands.fingerprint import fingerprint

STEPS, SAVE_EVERY, EVALUATE_EVERY = 90, 5, 30
CONFIG = f"""
name: t0
data: {{name: digits}}
model: {{name: cnn, width: 8, dropout: 0.2}}
augment: [{{name: random_crop, padding: 1}}, {{name: horizontal_flip}}]
loader: {{workers: 1}}
optimizer: {{name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 1.0e-4}}
batch: {{microbatches: 8, global_size: 32}}
train: {{duration: {STEPS} steps}}
eval: {{every: {EVALUATE_EVERY} steps}}
checkpoint: {{every: {SAVE_EVERY} steps, keep: 3}}
tracking: {{every: 1 steps, samples: true, wandb: {{mode: disabled}}}}
"""
COUNTED = """
extends: t0.yaml
optimizer: {name: "tests.faults.fixture:CountedSGD", lr: 0.1, args: {momentum: 0.9}, weight_decay: 1.0e-4}
train: {sanity_check: false}
"""
STEPS_FOLDER = "DIST_TRAIN_FAULTS_STEPS"
"""Where CountedSGD writes. Its config leaves out the check before the first step, which makes steps of its own."""
PLAIN, WITH_COUNTS = "t0.yaml", "counted.yaml"


class CountedSGD(torch.optim.SGD):
    """SGD that leaves behind, for each rank, how many steps it has done in this life: one byte each."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        with open(Path(os.environ[STEPS_FOLDER]) / f"rank{os.environ['RANK']}", "ab", buffering=0) as file:
            file.write(b".")
        return result


def write_configs(folder: Path) -> None:
    (folder / PLAIN).write_text(CONFIG)
    (folder / WITH_COUNTS).write_text(COUNTED)


@dataclass(frozen=True)
class Record:
    """All that two runs must have in common."""

    fingerprint: str
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    def difference(self, other: "Record") -> str | None:
        """Where `other` differs from this, in words."""
        for name in ("metrics", "samples"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                row = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
                where = f"{len(ours)} and {len(theirs)} rows" if row is None else f"{ours[row]} and {theirs[row]}"
                return f"{name}.jsonl differs: {where}"
        if self.fingerprint != other.fingerprint:
            return f"fingerprint differs: {self.fingerprint} and {other.fingerprint}"
        return None


def record(run_dir: Path) -> Record:
    """Fingerprint, metrics without the clock, and the log of samples."""
    metrics = [{key: value for key, value in row.items() if key != "time"} for row in _rows(run_dir / "metrics.jsonl")]
    return Record(fingerprint(locate(run_dir, print)), metrics, _rows(run_dir / "samples.jsonl"))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
