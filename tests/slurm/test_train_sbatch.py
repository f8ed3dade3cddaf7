"""slurm/*.sbatch on a real SLURM: from submission to the end, mistakes, arrays. What they survive: test_survive.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.training import DIGITS, ENVIRONMENT, QUIET, ROOT, SCRIPT, TWO_NODES, Submitted, submit

SCRIPTS = sorted(str(path) for path in (ROOT / "slurm").glob("*.sbatch"))

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.rpartition("/")[2])
def test_the_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here; bash -n found nothing")
    subprocess.run(["shellcheck", script], check=True)


def test_the_script_by_hand_ends_in_the_body_that_all_have():
    assert Path(SCRIPT).read_text().endswith((ROOT / "launch/slurm/body.sh").read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.rpartition("/")[2])
def test_without_a_config_they_say_how_to_call_them(script):
    environment = os.environ | {"DIST_TRAIN_HOME": str(ROOT), "IMAGE": "train.sif"}
    done = subprocess.run(["bash", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr.startswith("usage: sbatch")) == (2, True)


def test_a_mistake_in_the_config_fails_the_job_with_code_2(slurm_cluster, tmp_path):
    run = submit(slurm_cluster, tmp_path, TWO_NODES, "optimizer.lrr=0.1")
    job = run.wait_for_end()
    assert (job.state, job.exit_code) == ("FAILED", 2)
    assert "optimizer.lrr" in run.log_text()
    assert not (tmp_path / "runs").exists()


def test_a_sweep_takes_each_task_its_line_in_a_container_of_one_prefix(slurm_cluster, tmp_path):
    """Line 2 of a list, with a blank in a value; `env` in front of the command stands for the container."""
    (tmp_path / "list").write_text("seed=1\nseed=2 'tracking.wandb.project=two words'\nseed=3\n")
    environment = ENVIRONMENT | {"DIST_TRAIN_PREFIX": "env INSIDE=1"}
    sweep = [str(ROOT / "slurm/sweep.sbatch"), "list", DIGITS, QUIET, "train.stop_after=2 steps"]
    array = slurm_cluster.submit("--array=2", "--cpus-per-task=1", *sweep, cwd=tmp_path, environment=environment)
    log = tmp_path / f"dist-train-{array}_2.log"
    job = slurm_cluster.wait(f"{array}_2", timeout=200)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), log.read_text()
    config = json.loads(_as_json(tmp_path / f"runs/digits/slurm-{array}_2/config.yaml"))
    assert (config["seed"], config["tracking"]["wandb"]["project"]) == (2, "two words")
    assert ": env INSIDE=1 " in log.read_text()


def _as_json(path) -> str:
    code = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"
    return subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout


@pytest.mark.long
def test_a_task_of_an_array_is_requeued_by_its_own_name(slurm_cluster, tmp_path):
    array = submit(
        slurm_cluster, tmp_path, ["--array=3", "--nodes=1", "--cpus-per-task=1"], "train.stop_after=200 steps"
    )
    run = Submitted(slurm_cluster, f"{array.id}_3", tmp_path / f"runs/digits/slurm-{array.id}_3", array.log)
    run.wait_for_training()
    slurm_cluster.run(["scancel", "--batch", "--signal=USR1", str(run.id)])
    job = run.wait_for_end()
    assert (job.state, job.restarts) == ("COMPLETED", 1), run.log_text()
