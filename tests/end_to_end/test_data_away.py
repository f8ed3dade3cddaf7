"""Data whose folder goes away in the middle of a training, and comes back or does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from dist_train.checkpoint.store import locate
from dist_train.commands.fingerprint import fingerprint
from tests.end_to_end.test_launcher import until

BIN = Path(sys.executable).parent
CONFIG = """
data: {name: image_folder, root: data, train: train, eval: val, image_size: 8}
model: {name: cnn, width: 2}
batch: {global_size: 8, microbatches: 2}
optimizer: {name: sgd, lr: 0.05}
train: {duration: 300 steps}
eval: {every: 100 steps}
loader: {workers: 1}
tracking: {every: 1 steps, wandb: {mode: disabled}}
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("away")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 20), ("val", 4)):
        for name in ("cat", "dog"):
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                image = torch.randint(0, 255, (3, 10, 12), generator=generator, dtype=torch.uint8)
                write_png(image, str(folder / "data" / split / name / f"{index}.png"))
    (folder / "c.yaml").write_text(CONFIG)
    return folder


def start(folder: Path, run: str, *words: str) -> subprocess.Popen:
    """Starts a training, and takes its data away once it has made some steps."""
    command = [BIN / "dist-train", "train", "c.yaml", "--nproc-per-node", "2", "--run-dir", run, *words]
    started = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    metrics = folder / run / "metrics.jsonl"
    until(lambda: started.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") >= 5))
    (folder / "data").rename(folder / "data.away")
    return started


@pytest.mark.long
def test_a_training_goes_on_when_its_data_is_back_and_ends_in_the_same_bits(folder):
    with start(folder, "away") as started:
        log = folder / "away/logs/rank0.log"
        until(lambda: started.poll() is not None or "! the data is away (No such file" in log.read_text())
        (folder / "data.away").rename(folder / "data")
        said = started.communicate(timeout=120)[1]
    assert started.returncode == 0, said
    assert "! the data is back" in said and "Traceback" not in said
    words = [BIN / "python", "-m", "dist_train", "c.yaml", "--run-dir", "alone"]
    subprocess.run(words, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)
    assert fingerprint(locate(folder / "away", print)) == fingerprint(locate(folder / "alone", print))


def test_data_that_stays_away_is_exit_code_13_and_tried_again_by_a_restart(folder):
    with start(folder, "gone", "loader.retry=1 s", "--max-restarts", "1") as started:
        said = started.communicate(timeout=120)[1]
    (folder / "data.away").rename(folder / "data")
    assert started.returncode == 13, said
    assert said.count("starting again, attempt 2 of at most 2") == 1 and "Traceback" not in said
    assert json.loads((folder / "gone/generations/2/verdict.json").read_text())["exit_code"] == 13
