"""`dist-train slurm`, `stop` and `runs` on a real cluster: from one command to the bits of one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dist_train.rundir.records import read_launches
from tests.slurm.cluster import Cluster, Finished, wait_until
from tests.slurm.training import DIGITS, QUIET, ROOT, SIXTY_STEPS

WITH_SITE = ("slurm.site=site.sh", QUIET)
SLOW = ("data={name: 'tests.faults.slow_data:Slow', args: {sign: evaluating, seconds: 0.02}}", "augment=[]")
SLOW += ("model={name: mlp, hidden: [8]}", "batch.global_size=16", "train.duration=200 epochs")
"""A training that waits most of the time, and leaves the processors to the commands."""
PATIENCE = 300
"""Seconds for a training to begin; a machine under load takes long to import torch."""

pytestmark = pytest.mark.timeout(600)


class Desk:
    """A folder on a login node, with a site file, from which jobs are submitted."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        (folder / "site.sh").write_text("export GLOO_SOCKET_IFNAME=lo\n")

    def command(self, *words: str) -> list[str]:
        return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "dist_train.launch", *words]

    def call(self, *words: str, code: int = 0) -> Finished:
        done = self.cluster.run(self.command(*words), check=False, timeout=500, cwd=self.folder)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def submit(self, *words: str) -> list[dict[str, str]]:
        """What was recorded of the job, or of each task of an array."""
        return json.loads(self.call("slurm", DIGITS, *words, *WITH_SITE, "--json").stdout)

    def runs(self) -> dict[str, dict]:
        """What `dist-train runs` says, by the run's path."""
        found = json.loads(self.call("runs", "--json").stdout)
        return {str((self.folder / run["path"]).resolve()): run for run in found}

    def wait_for_training(self, *records: dict[str, str]) -> None:
        def trains(record: dict[str, str]) -> bool:
            metrics = Path(record["run_dir"]) / "metrics.jsonl"
            return metrics.exists() and metrics.read_text().count('"train"') >= 5

        try:
            wait_until(lambda: all(map(trains, records)), PATIENCE, "training to begin")
        except TimeoutError as error:
            logs = [Path(record["log"]) for record in records]
            raise AssertionError(f"{error}\n" + "\n".join(log.read_text() for log in logs if log.exists())) from error


@pytest.fixture
def desk(slurm_cluster: Cluster, tmp_path: Path) -> Desk:
    return Desk(slurm_cluster, tmp_path)


def state_of(record: dict[str, str]) -> dict:
    return json.loads((Path(record["run_dir"]) / "state.json").read_text())


def assert_saved_and_stopped(record: dict[str, str]) -> None:
    state = state_of(record)
    assert state["status"] == "stopped"
    assert (Path(record["run_dir"]) / f"checkpoints/step-{state['step']:08d}/manifest.json").is_file()


def test_one_command_trains_on_two_nodes_to_the_bits_of_one_process(desk, alone_after_60):
    flags = ("--nodes", "2", "--cpus-per-task", "2", "--time", "30")
    done = desk.call("slurm", DIGITS, *flags, "--follow", SIXTY_STEPS, *WITH_SITE)
    (run,) = desk.runs().values()
    folder = desk.folder / run["path"]
    record = json.loads((folder / "slurm" / "job.json").read_text())
    assert done.stdout.splitlines()[0] == record["job"]
    assert record["run_dir"] in done.stderr and record["log"] in done.stderr
    assert f"job {record['job']}: COMPLETED" in done.stderr
    assert f"job {record['job']} on 127.0.0.[1-2], start 1" in done.stdout  # the log
    assert done.stdout.endswith(Path(record["log"]).read_text())
    assert state_of(record)["world_size"] == 4 and run["step"] == 60
    assert (folder / "checkpoints/step-00000060/manifest.json").is_file()
    assert [launch.began.hosts for launch in read_launches(folder)] == [["127.0.0.1", "127.0.0.2"]]
    assert run["queue"]["state"] == "COMPLETED" and (folder.parent / "latest").resolve() == folder
    assert desk.call("fingerprint", str(folder)).stdout.strip() == alone_after_60


def test_a_running_and_a_waiting_job_are_stopped_saved_and_not_requeued(desk):
    (running,) = desk.submit("--nodes", "2", *SLOW)  # longer than the commands below take
    (waiting,) = desk.submit("slurm.options=[--hold]")
    desk.wait_for_training(running)
    assert desk.runs()[running["run_dir"]]["queue"]["state"] == "RUNNING"
    seen = desk.runs()[waiting["run_dir"]]
    assert (seen["state"], seen["queue"]["state"], seen["queue"]["reason"]) == ("submitted", "PENDING", "JobHeldUser")
    table = desk.call("runs").stdout
    assert f"{waiting['job']} PENDING (JobHeldUser)" in table and f"{running['job']} RUNNING" in table
    again = desk.call("slurm", DIGITS, *WITH_SITE, "--run-dir", waiting["run_dir"], code=3)
    assert f"as job {waiting['job']}" in again.stderr

    said = desk.call("stop", running["run_dir"], waiting["run_dir"]).stderr
    assert f"{running['run_dir']}: stopped at step" in said and f"{waiting['run_dir']}: taken out of the queue" in said
    ended, cancelled = desk.cluster.job(running["job"]), desk.cluster.job(waiting["job"])
    assert (ended.state, ended.exit_code, ended.restarts) == ("FAILED", 130, 0), Path(running["log"]).read_text()
    assert cancelled.state == "CANCELLED"
    assert_saved_and_stopped(running)
    assert "not running (stopped)" in desk.call("stop", running["run_dir"]).stderr
    assert desk.runs()[waiting["run_dir"]]["state"] == "cancelled"


def test_following_can_be_given_up_and_the_job_goes_on(desk):
    command = desk.command("slurm", DIGITS, "--follow", "slurm.options=[--hold]", *WITH_SITE)
    with subprocess.Popen(
        command,
        cwd=desk.folder,
        env=desk.cluster.environment,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.PIPE,
    ) as following:
        try:
            job = following.stdout.readline().strip()
            while "PENDING" not in (line := following.stderr.readline()):
                assert line, "it ended without a word of the job's state"
            following.send_signal(signal.SIGINT)
            rest = following.communicate(timeout=60)[1]
        finally:
            following.kill()
    assert following.returncode == 130 and f"job {job} goes on" in rest
    assert desk.cluster.job(job).state == "PENDING"


@pytest.mark.long
def test_a_job_that_has_come_back_is_stopped_like_any_other(desk):
    (record,) = desk.submit("--nodes", "2")
    desk.wait_for_training(record)
    desk.cluster.run(["scontrol", "requeue", record["job"]])
    second = Path(record["run_dir"]) / "generations" / "2"
    wait_until(lambda: (second / "ranks" / "0.json").exists(), PATIENCE, "the second life")
    assert desk.runs()[record["run_dir"]]["queue"]["restarts"] == 1
    desk.call("stop", record["run_dir"])
    job = desk.cluster.job(record["job"])
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 130, 1), Path(record["log"]).read_text()
    assert_saved_and_stopped(record)


@pytest.mark.long
def test_all_tasks_of_an_array_are_stopped_by_the_name_of_its_folder(desk):
    records = desk.submit("--array", "0-1", "seed={task}")
    desk.wait_for_training(*records)
    folder = Path(records[0]["run_dir"]).parent
    desk.call("stop", os.path.relpath(folder, desk.folder))
    for task, record in enumerate(records):
        assert_saved_and_stopped(record)
        assert f"seed: {task}\n" in (Path(record["run_dir"]) / "config.yaml").read_text()
        job = desk.cluster.job(record["job"])
        assert (job.state, job.exit_code, job.restarts) == ("FAILED", 130, 0), Path(record["log"]).read_text()
