"""The commands as a person types them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from benchmarks import shards
from dist_train.checkpoint.store import locate
from dist_train.commands.fingerprint import fingerprint
from tests.distributed.training import train_there
from tests.rank_pool import run_ranks

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CONFIG = """
name: digits
data: {name: digits}
model: {name: cnn, width: 8, dropout: 0.1}
optimizer: {name: sgd, lr: 0.1}
batch: {microbatches: 4, global_size: 64}
train: {duration: 2 epochs}
tracking: {every: 2 steps, wandb: {mode: disabled}}
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "digits.yaml").write_text(CONFIG)
    return tmp_path


def run(folder, *command, code=0):
    """Runs a command of .venv/bin to its end; returns stdout and stderr."""
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


BREAKS = """
from dist_train.tasks import Task
class Breaks(Task):
    def loss(self, output, target):
        return output.square().sum(), len(target)
    def metrics(self, sums):
        raise ValueError("no figures")
"""


def test_a_fast_dev_run_does_everything_and_leaves_nothing(folder):
    """Also where the user's code breaks, in an evaluation that would come after an epoch."""
    (folder / "breaks.py").write_text(BREAKS)
    elsewhere = {"TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    (folder / "tmp").mkdir()
    before = sorted(folder.iterdir())
    own = ["task.name=breaks:Breaks", "train.sanity_check=false"]
    for words, code in ([], 0), (own, 10), (["--run-dir", "r"], 2), (["eval.evry=1"], 2):
        command = [BIN / "dist-train", "train", "digits.yaml", "--fast-dev-run", "--nproc-per-node", "2", *words]
        done = subprocess.run(
            command, cwd=folder, env={**ENVIRONMENT, **elsewhere}, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == code, done.stderr
        assert "To go on" not in done.stderr, "its folder is removed"
        if code == 0:
            assert done.stderr.count(" evaluation step ") == 1 and " step 3/" in done.stderr
        assert sorted(folder.iterdir()) == before
        assert not [path for path in (folder / "tmp").iterdir() if path.name.startswith("dist-train")]


TRIAL_OF_SHARDS = (
    "data.classes=10 data.image_size=8 data.resize=8 model=cnn train.duration=4|epochs schedule.warmup=0|steps"
)


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "words", "metric", "least"),
    [
        ("segmentation", "", "mean_iou", 0.85),
        ("multi_label", "", "mean_average_precision", 0.97),
        ("regression", "", "r2", 0.4),
        ("digits", "", "accuracy", 0.97),
        ("synthetic", "", "accuracy", 0.99),
        ("own_components", "", "accuracy", 0.97),
        ("huggingface", "", "accuracy", 0.97),
        ("shards", f"data.train=HERE/train-*.tar data.eval=HERE/val-*.tar {TRIAL_OF_SHARDS}", "accuracy", 0.97),
        ("char_lm", f"data.root={ROOT}/CHANGELOG.md data.cache_folder=HERE train.duration=100|steps", "accuracy", 0.15),
        (
            "fine_tune",
            "data.root=HERE/tree data.image_size=32 data.resize=32 train.duration=1|epochs batch.global_size=8 "
            "model.pretrained=false model.start_weights=HERE/resnet18.pth",
            "accuracy",
            0.0,
        ),
    ],
)
def test_a_shipped_config_reaches_what_it_promises(tmp_path, config, words, metric, least):
    """The data of those that need some are made here."""
    if config == "huggingface":
        pytest.importorskip("transformers")
    if config == "shards":
        for name in ("train", "val"):
            shards.make(tmp_path, 5000, 5, name)
    if config == "fine_tune":
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
        for name in ("a", "b"):
            _write_digits(tmp_path / "tree" / name)
    words = words.replace("HERE", str(tmp_path)).split()
    command = ["dist-train", "train", str(ROOT / f"configs/{config}.yaml"), "--nproc-per-node", "2", "--run-dir"]
    done = subprocess.run(
        [
            *(BIN / command[0], *command[1:], str(tmp_path / "r"), "tracking.wandb.mode=disabled"),
            *(word.replace("|", " ") for word in words),
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [row[metric] for row in rows if row["kind"] == "evaluation"][-1] >= least


def of(run_dir):
    return fingerprint(locate(run_dir, print))


def test_launcher_torchrun_and_one_plain_process_end_in_the_same_bits(folder):
    _, said = run(folder, "dist-train", "train", "digits.yaml", "--nproc-per-node", "3", "--run-dir", "launched")
    assert "3 ranks on CPU (gloo)" in said and "done in" in said
    run(folder, "python", "-m", "dist_train", "digits.yaml", "--run-dir", "plain")
    ranks = ["--standalone", "--nproc-per-node", "2"]
    run(folder, "torchrun", *ranks, "-m", "dist_train", "digits.yaml", "--run-dir", "torchrun")
    assert of(folder / "launched") == of(folder / "plain") == of(folder / "torchrun")
    printed, _ = run(folder, "dist-train", "fingerprint", "launched")
    assert printed.strip() == of(folder / "plain")


def test_a_saved_run_answers_the_other_commands(folder):
    printed, _ = run(folder, "dist-train", "train", "digits.yaml", "--nproc-per-node", "2", "--json")
    verdict = json.loads(printed.splitlines()[-1])
    assert (verdict["outcome"], verdict["exit_code"], verdict["cause"]) == ("done", 0, None)
    latest = folder / "runs" / "digits" / "latest"
    state = json.loads((latest / "state.json").read_text())
    assert state["status"] == "done" and state["metrics"]["accuracy"] > 0.9
    evaluated = json.loads(run(folder, "dist-train", "evaluate", str(latest), "--nproc-per-node", "1", "--json")[0])
    assert evaluated["accuracy"] == state["best"]["value"] and evaluated["step"] == state["best"]["step"]
    assert {"loss", "precision", "recall", "f1", "confusion", "per_class"} <= evaluated.keys()
    listed = json.loads(run(folder, "dist-train", "runs", "--json")[0])
    assert [(item["state"], item["step"]) for item in listed] == [("done", 44)]
    exported = json.loads(run(folder, "dist-train", "export", str(latest), "--to", "m.safetensors", "--json")[0])
    assert exported["file"] == "m.safetensors" and exported["bytes"] == (folder / "m.safetensors").stat().st_size
    reported = json.loads(run(folder, "dist-train", "report", str(latest), "--out", "r.html", "--json")[0])
    assert reported == {"report": "r.html"} and (folder / "r.html").exists()
    _write_digits(folder / "images")
    rows = json.loads(run(folder, "dist-train", "predict", str(latest), "images", "--json")[0])
    right = sum(row["class"] == Path(row["file"]).stem.split("-")[0] for row in rows)
    assert len(rows) == 10 and right >= 8
    assert all(0 < row["probability"] <= 1 for row in rows)


def _write_digits(folder):
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    digits = load_digits()
    for number in range(10):
        pixels = (digits.images[number] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{digits.target[number]}-{number}.png")


def test_stopped_three_times_and_resumed_it_ends_as_if_nothing_had_happened(folder):
    """By the signal of a scheduler, of a person, and the one that asks to be requeued; on two ranks, then on one."""
    assert run_ranks(train_there, 1, folder, "digits.yaml", "whole") == [0]
    steps = [0]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)):
        said = _stopped_by(number, code, folder)
        assert "To go on: dist-train train --resume" in said
        state = json.loads((folder / "pieces" / "state.json").read_text())
        assert state["status"] == "stopped" and steps[-1] < state["step"] < 44
        steps.append(state["step"])
    run(folder, "dist-train", "train", "--resume", "pieces", "--nproc-per-node", "1")
    assert of(folder / "pieces") == of(folder / "whole")


def _stopped_by(number, code, folder):
    """Starts or resumes `pieces`, and stops it at its first line of metrics."""
    command = [BIN / "dist-train", "train", "digits.yaml", "--nproc-per-node", "2", "--run-dir", "pieces"]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as started:
        for line in started.stderr:
            if re.match(r"[\d:]{8} step ", line):
                break
        started.send_signal(number)
        rest = started.stderr.read()
    assert started.returncode == code, rest
    return rest


def test_a_mistake_costs_nothing(folder):
    before = sorted(folder.iterdir())
    _, said = run(folder, "dist-train", "train", "digits.yaml", "optimizer.lrr=1", "batch.global_size=33", code=2)
    assert "Did you mean lr?" in said and "the nearest are 32 and 36" in said
    assert "Traceback" not in said
    assert sorted(folder.iterdir()) == before


def test_a_dry_run_tells_all_names_a_class_that_may_be_misspelt_and_writes_nothing(folder):
    rows = "".join(f"{number},{name}\n" for name, count in (("setosa", 1796), ("setsoa", 4)) for number in range(count))
    (folder / "flowers.csv").write_text(f"width,kind\n{rows}")
    before = sorted(folder.rglob("*"))
    table = ["data={name: table, root: flowers.csv, targets: [kind]}", "model={name: mlp}", "augment=[]"]
    words = ["dist-train", "train", "digits.yaml", *table, "--nproc-per-node", "2"]
    out, said = run(folder, *words, "--dry-run", "--verbose")
    assert "torchrun" in said and said.endswith("nothing was started, nothing was written\n")
    assert re.search(r"22 an epoch", said) and "44" in said and yaml.safe_load(out)["batch"]["global_size"] == 64
    assert sorted(folder.rglob("*")) == before
    assert (
        "\nclasses  2: setosa 1,796, setsoa 4\n!        setsoa (4) looks like setosa (1,796): is it the same class"
        in said
    )


def test_a_dry_run_ends_as_the_training_would(folder):
    before = sorted(folder.rglob("*"))
    missing = "data={name: image_folder, root: nowhere, eval_fraction: 0.1}"
    out, said = run(folder, "dist-train", "train", "digits.yaml", missing, "--dry-run", code=13)
    assert out == "" and len(said.splitlines()) == 1 and "nowhere" in said
    assert sorted(folder.rglob("*")) == before


def test_data_that_is_not_there_is_one_line_and_exit_code_13(folder):
    missing = "data={name: cifar10, root: nothing-here, download: false}"
    _, said = run(folder, "dist-train", "train", "digits.yaml", missing, "--nproc-per-node", "2", code=13)
    assert "nothing-here" in said and "Traceback" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_gpus_that_torch_does_not_see_are_one_line_and_exit_code_2(folder):
    """The plan counts what nvidia-smi tells; a driver that is too old for torch looks the same."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    given = {**ENVIRONMENT, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    given.pop("CUDA_VISIBLE_DEVICES", None)
    command = [BIN / "dist-train", "train", "digits.yaml", "--run-dir", "run"]
    for more, code in (([], 2), (["distributed.backend=gloo", "train.duration=2 steps", "--nproc-per-node", "1"], 0)):
        done = subprocess.run([*command, *more], cwd=folder, env=given, capture_output=True, text=True, timeout=100)
        assert done.returncode == code, done.stderr
        if code:
            assert "this machine has 1 GPU, and torch sees none (" in done.stderr and "Traceback" not in done.stderr


def test_a_loss_that_is_not_finite_ends_with_11_and_is_not_saved(folder):
    _, said = run(folder, "dist-train", "train", "digits.yaml", "optimizer.lr=1e30", "--run-dir", "run", code=11)
    assert "not finite" in said and "Traceback" not in said
    assert not (folder / "run" / "checkpoints").exists()


def test_w_and_b_reads_back_the_whole_run(folder):
    """Offline, by its own library, over a stop and a resume: one run, every interval once, the final figures."""
    offline = ["tracking.wandb.mode=offline", "--nproc-per-node", "2", "--run-dir", "run"]
    run(folder, "dist-train", "train", "digits.yaml", *offline, "train.stop_after=13 steps")
    run(folder, "dist-train", "train", "digits.yaml", *offline)
    lives = sorted((folder / "run" / "wandb").glob("offline-run-*"))
    assert len(lives) == 2 and len({life.name.rpartition("-")[2] for life in lives}) == 1
    records = [json.loads(line) for life in lives for line in _inspected(folder, life).splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    steps = [row["train/step"] for row in history if "train/loss" in row]
    assert steps == [*range(2, 13, 2), 13, *range(14, 45, 2)]
    assert [row["train/step"] for row in history if "eval/accuracy" in row] == [22, 44]


def _inspected(folder, life):
    return run(folder, "wandb", "leet", "inspect", "--json", str(next(life.glob("*.wandb"))))[0]


def test_a_start_that_ends_with_2_leaves_everything_as_it_was(folder):
    channels = "augment=[{name: normalize, mean: [0.1, 0.2], std: [1.0, 1.0]}]"  # the pictures have one
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("to be kept")
    train = ["dist-train", "train", "digits.yaml", "--nproc-per-node", "2", channels]
    printed, said = run(folder, *train, "--json", "--log-dir", "logs/of/it", code=2)
    assert json.loads(printed.splitlines()[-1])["exit_code"] == 2 and "2 means, and the images have 1 channels" in said
    run(folder, *train, "--run-dir", "mine", code=2)
    assert {path.name for path in folder.rglob("*")} == {"digits.yaml", "mine", "notes.txt"}
