"""The command line: instant help, one clear line for each mistake, exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.report.words import size
from launch.plan.dry_run import sparkline

ROOT = Path(__file__).parents[4]
CONFIG = str(ROOT / "configs" / "digits.yaml")


def dist_train(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-m", "dist_train.launch", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, env=environ)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom launch.cli import COMMANDS, commands\n"
        "for words in (['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    assert CliRunner().invoke(commands, words).exit_code == 0, words\n"
        "print([name for name in ('torch', 'pydantic', 'wandb', 'rich', 'numpy', 'yaml') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert answer.stdout.strip() == "[]", answer.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "no command 'trian'. Did you mean train?"),
        (["configs/digits.yaml"], "dist-train train configs/digits.yaml"),
        (["train"], "which config?"),
        (["train", "configs/digts.yaml"], "Did you mean configs/digits.yaml?"),
        (["train", "digits"], "Did you mean configs/digits.yaml?"),
        (["train", "configs"], "configs is a folder"),
        (["train", CONFIG, "--nproc-per-nod", "2"], "no option --nproc-per-nod. Did you mean --nproc-per-node?"),
        (["train", CONFIG, "nproc"], "'nproc' is no override"),
        (["train", CONFIG, "configs/cifar10.yaml"], "a second config"),
        (["train", CONFIG, "--nproc-per-node", "99"], "99 ranks need at least as many microbatches"),
        (["train", CONFIG, "--nnodes", "2"], "agree on one run directory"),
        (["train", CONFIG, "--resume", "nowhere"], "no such directory"),
        (["train", "--resume", "nowhere"], "no such directory"),
        (["train", CONFIG, "optimizer.lrr=1"], "Did you mean lr?"),
        (["evaluate", "nowhere"], "nowhere"),
        (["predict", "nowhere"], "nowhere"),
        (["watch", "nowhere"], "nowhere: no such run"),
        (["watch"], "runs: no runs"),
        (["config", "validate", CONFIG, "seed=-1"], "seed"),
    ],
)
def test_a_mistake_is_told_and_creates_nothing(words, said, tmp_path):
    for name in ("configs",):
        os.symlink(ROOT / name, tmp_path / name)
    answer = dist_train(*words, cwd=tmp_path)
    assert answer.returncode == 2
    assert said in answer.stderr and "Traceback" not in answer.stderr
    assert answer.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


def test_underscores_are_dashes_and_the_environment_is_torchruns(tmp_path):
    answer = dist_train("train", CONFIG, "--nproc_per_node", "99", cwd=tmp_path)
    assert "99 ranks" in answer.stderr
    assert "77 ranks" in dist_train("train", CONFIG, cwd=tmp_path, PET_NPROC_PER_NODE="77").stderr


def test_config_commands():
    assert dist_train("config", "validate", CONFIG).stderr == f"✓ {CONFIG}: valid\n"
    shown = dist_train("config", "show", CONFIG, "seed=5")
    assert "\nseed: 5\n" in shown.stdout and shown.stderr == ""
    assert json.loads(dist_train("config", "schema").stdout)["properties"]["seed"]


def test_runs(tmp_path):
    folder = tmp_path / "runs" / "digits" / "one"
    folder.mkdir(parents=True)
    best = {"metric": "accuracy", "value": 0.98, "step": 20}
    state = {"status": "done", "step": 20, "total_steps": 20, "best": best}
    (folder / "state.json").write_text(json.dumps(state))
    table = dist_train("runs", cwd=tmp_path).stdout.splitlines()
    assert table[1].split() == ["digits/one", "done", "accuracy", "98.0", "%", "20/20", "runs/digits/one"]
    assert json.loads(dist_train("runs", "--json", cwd=tmp_path).stdout)[0]["state"] == "done"
    assert dist_train("runs", "--root", "none", cwd=tmp_path).stderr == "no runs under none\n"


def test_figures():
    assert [size(number) for number in (512, 102_400_000, 1.23e9)] == ["512 B", "102 MB", "1.23 GB"]
    assert sparkline([0.0, 1.0, 0.5], 3) == "▁█▄" or sparkline([0.0, 1.0, 0.5], 3) == "▁█▅"
