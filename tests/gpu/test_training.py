"""What only a GPU can show. Skipped without one."""

import json

import pytest
import torch

from dist_train.checkpoint.store import locate
from dist_train.commands.fingerprint import fingerprint
from dist_train.control.stop import StopFlag

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CONFIG = """
name: gpu
data: {name: synthetic, shape: [3, 32, 32], size: 512, eval_size: 100}
model: {name: cnn, channels_last: true}
augment: [{name: random_crop}, {name: horizontal_flip}]
batch: {microbatches: 4, global_size: 64}
train: {duration: 12 steps}
tracking: {wandb: {mode: disabled}}
"""


def _train(folder, run, *arguments):
    from dist_train.worker import main

    (folder / "gpu.yaml").write_text(CONFIG)
    with StopFlag().handling_signals() as flag:
        assert main([str(folder / "gpu.yaml"), *arguments, "--run-dir", str(folder / run)], flag) == 0
    return fingerprint(locate(folder / run, print))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_twice_and_resumed_are_the_same_bits(tmp_path, precision):
    chosen = f"train.precision={precision}"
    whole = _train(tmp_path, "whole", chosen)
    assert _train(tmp_path, "again", chosen) == whole
    _train(tmp_path, "pieces", chosen, "train.stop_after=5 steps")
    assert _train(tmp_path, "pieces", chosen) == whole


def test_a_step_does_not_wait_for_the_gpu(tmp_path, monkeypatch):
    """CUDA's own check raises where the host waits for the device."""
    from dist_train import loop

    step = loop.train_step

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error" if arguments[1] > 2 else "default")
        try:
            return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "train_step", watched)
    _train(tmp_path, "run", "train.clip_norm=1.0")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "train" for row in rows) == 12
