"""`batch.microbatches: fit` under limits that the kernel holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dist_train.checkpoint.store import locate
from dist_train.commands.fingerprint import fingerprint
from tests.failures.cgroups import memory_cgroup, peak, swapped

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
CONFIG = """
name: fit
data: {name: synthetic, shape: [3, 64, 64], size: 512, eval_size: 16}
model: {name: cnn}
optimizer: {name: adamw, lr: 0.01}
batch: {global_size: 128, microbatches: fit}
train: {duration: 2 steps, sanity_check: false}
eval: {batch_size: 8}
tracking: {wandb: {mode: disabled}}
"""
MB = 1_000_000
FOUND = re.compile(r"fit: (\d+) microbatches of (\d+): ([\d.]+) GB of ([\d.]+) GB")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fit.yaml").write_text(CONFIG)
    return tmp_path


def train(folder, run, *words, limit=None, ranks=1):
    """Exit code and what was said, of a training in a cgroup with `limit` bytes; and its peak and what it swapped."""
    command = [str(BIN / "dist-train"), "train", "fit.yaml", "--run-dir", run, "--nproc-per-node", str(ranks), *words]

    def started(inside):
        done = subprocess.run(
            [*inside, *command], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
            text=True, timeout=900, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stderr

    if limit is None:
        return (*started(()), 0, 0)
    with memory_cgroup(limit) as group:
        code, said = started(("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"))
        return code, said, peak(group), swapped(group)


def microbatches(folder, run):
    return yaml.safe_load((folder / run / "config.yaml").read_text())["batch"]["microbatches"]


def bits(folder, run):
    return fingerprint(locate(folder / run, print))


@pytest.mark.timeout(1000)
def test_what_fits_is_found_recorded_and_kept(folder):
    code, said, _, swap = train(folder, "run", "train.stop_after=1 steps", limit=720 * MB)
    assert (code, swap) == (0, 0), said
    parts, size = map(int, FOUND.search(said).groups()[:2])
    assert parts * size == 128 and 1 < parts < 128, "neither all at once nor one by one: the limit counts"
    assert microbatches(folder, "run") == parts
    code, said, *_ = train(folder, "run", ranks=2)  # on another number of ranks, and without a limit
    assert code == 0 and not FOUND.search(said), said
    assert train(folder, "given", f"batch.microbatches={parts}")[0] == 0
    assert microbatches(folder, "run") == parts and bits(folder, "run") == bits(folder, "given")


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_what_does_not_fit_is_told_the_next_number(folder):
    code, said, *_ = train(folder, "run", "batch.microbatches=4", "batch.global_size=512", limit=500 * MB)
    assert code == 12, said
    assert "A new run with batch.microbatches=8 (64 samples each, not 128)" in said


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", ["cnn", "resnet18"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_it_trains_under_every_limit_from_a_little_more_than_the_least(folder, model, ranks, capsys):
    words = (f"model.name={model}", "train.sanity_check=true")
    code, said, least, _ = train(folder, "least", *words, "batch.microbatches=64", limit=16_000 * MB, ranks=ranks)
    assert code == 0, said
    table, before = [], 128
    for number, limit in enumerate((*(least * share // 10 for share in (12, 15, 20, 30)), 4_000 * MB)):
        run = f"run{number}"
        code, said, used, swap = train(folder, run, *words, limit=limit, ranks=ranks)
        assert (code, swap) == (0, 0), said
        parts = microbatches(folder, run)
        table.append((limit // MB, used // MB, FOUND.search(said).group(0)))
        assert parts <= before, "more memory, no more microbatches"
        before = parts
        others = min(parts, 3 - ranks)  # one microbatch is no work for two
        assert train(folder, f"given{number}", *words, f"batch.microbatches={parts}", ranks=others)[0] == 0
        assert bits(folder, run) == bits(folder, f"given{number}")
    with capsys.disabled():
        print(f"\n{model}, ranks {ranks}, least {least // MB} MB", *table, sep="\n  ")
