"""What SLURM and its nodes do to a training, for real, on two nodes: it comes back by itself and ends in the same bits.

The quick test does each to one run; TIMES=20 (make test-long) does each that often, to a run of its own.
"""

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dist_train.rundir.codec import read_json
from tests.slurm.cluster import NODES, Cluster, wait_until
from tests.slurm.training import SIXTY_STEPS, TWO_NODES, Submitted, fingerprint, stopping_times, submit, trained_alone

TIMES = int(os.environ.get("TIMES", "20"))
GRACE = 20
"""Seconds of the test cluster's partition `low`."""
STEPS = 300
KILL_WAIT = 30
EVERY = "checkpoint.every=10 steps"
EXECUTED = ("--start", "exec")
"""A rank that was forked from the fork server is no orphan for a moment: the kernel ends it with the server."""

pytestmark = pytest.mark.timeout(900)


# ---------------------------------------------------------------- what is done


def time_limit(run: Submitted) -> None:
    """What `--signal=B:USR1@120` does, without the minutes of waiting for it."""
    run.cluster.run(["scancel", "--batch", "--signal=USR1", str(run.id)])


def requeue(run: Submitted) -> None:
    run.cluster.run(["scontrol", "requeue", str(run.id)])


def preemption(run: Submitted) -> None:
    options = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    urgent = run.cluster.submit(*options, "--wrap=true", cwd=run.folder)
    assert run.cluster.wait(urgent, timeout=120).state == "COMPLETED"


def killed_launcher_0(run: Submitted) -> None:
    _kill_launcher(run, 0)


def killed_launcher_1(run: Submitted) -> None:
    _kill_launcher(run, 1)


def dead_node_0(run: Submitted) -> None:
    """The one with the batch script."""
    _kill_node(run, 0)


def dead_node_1(run: Submitted) -> None:
    _kill_node(run, 1)


def _kill_launcher(run: Submitted, node: int) -> None:
    generation = max(run.folder.glob("generations/*"), key=lambda path: int(path.name))
    os.kill(read_json(generation / f"nodes/node{node}.json")["pid"], signal.SIGKILL)


def _kill_node(run: Submitted, node: int) -> None:
    """It is back once the job has been put back and its last process is gone, as a node is after a while."""
    before = run.cluster.job(run.id).restarts
    run.cluster.kill_node(NODES[node])
    run.wait_until(lambda: run.cluster.job(run.id).restarts > before, "the job to be put back")
    run.wait_until(lambda: not run.cluster.pids_on(NODES[1 - node], "launch"), "the other node's ranks to end")
    run.cluster.start_node(NODES[node])


def resize(run: Submitted, nodes: int) -> None:
    """Requeued by hand, to come back on another number of nodes."""
    job, before = str(run.id), run.cluster.job(run.id).restarts
    run.cluster.run(["scontrol", "requeuehold", job], check=False)  # a busy controller may be asked twice, and says so
    run.wait_until(lambda: run.cluster.job(job).restarts > before, "the job to wait")
    # SLURM refuses while the last processes of the job are still on their way out.
    change = ["scontrol", "update", f"JobId={job}", f"NumNodes={nodes}", f"NumTasks={nodes}"]
    # slurmd looks now and then whether the job that it was to end still runs, and a life that begins before it has
    # looked is taken for the old one: KillWait after the request, slurmd kills it.
    change.append(f"StartTime=now+{KILL_WAIT}")
    run.wait_until(lambda: run.cluster.run(change, check=False).returncode == 0, f"the job to have {nodes} nodes")
    run.cluster.run(["scontrol", "release", job])


WAYS: dict[str, Callable[[Submitted], None]] = {
    "time limit": time_limit,
    "requeue": requeue,
    "preemption": preemption,
    "launcher 0 killed": killed_launcher_0,
    "launcher 1 killed": killed_launcher_1,
    "node 0 dead": dead_node_0,
    "node 1 dead": dead_node_1,
}
SAVES = ("time limit", "requeue", "preemption")
"""Ways that leave the training time to save."""


def strike(run: Submitted, way: str) -> int:
    """Does it to the run's newest life, after some steps of it, and keeps the time that saving took.

    Returns the number of that life.
    """
    number = len(run.lives())
    asked = time.time()
    WAYS[way](run)
    if way not in SAVES:
        return number
    run.wait_until(lambda: len(run.lives()) > number, "the next life")
    life = run.lives()[number - 1]
    assert life.in_order, life
    saved = run.folder / "checkpoints" / life.ended.saved
    took = saved.stat().st_ctime - asked
    assert took < GRACE
    stopping_times.setdefault(way, []).append(took)
    return number


# ---------------------------------------------------------------- what must follow


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> str:
    """The fingerprint that one process reaches, uninterrupted."""
    return trained_alone(tmp_path_factory.mktemp("alone"), f"train.duration={STEPS} steps")


def start(cluster: Cluster, folder: Path, *flags: str, **environment: str) -> Submitted:
    return submit(cluster, folder, TWO_NODES, *flags, f"train.duration={STEPS} steps", EVERY, environment=environment)


LOST = ("left no word", "another node was lost", "SIGTERM: saved and stopped")
"""How a life ends that SLURM itself put back: on a busy machine it takes a slow node for a dead one, now and then."""


def assert_survived(run: Submitted, alone: str, struck: Sequence[int]) -> None:
    job = run.wait_for_end()
    assert (job.state, job.exit_code) == ("COMPLETED", 0), run.log_text()
    record = run.lives()
    assert [life.began.restarts for life in record] == list(range(job.restarts + 1)), record
    assert record[-1].ended.reason == "done", record
    others = [life for life in record[:-1] if life.number not in struck]
    assert all(life.ended.reason.startswith(LOST) for life in others), run.log_text()
    assert len(record) > len(struck), record
    assert run.fingerprint() == alone


@pytest.mark.parametrize("sizes", [(), pytest.param((1, 2), marks=pytest.mark.long)], ids=["", "also other sizes"])
def test_one_run_survives_one_thing_after_the_other(slurm_cluster, tmp_path, alone, sizes):
    run = start(slurm_cluster, tmp_path)
    struck = [0]
    for way in ("time limit", "preemption", "launcher 1 killed", "node 0 dead"):
        run.wait_for_training(struck[-1] + 1)
        struck.append(strike(run, way))
    for nodes in sizes:
        run.wait_for_training(struck[-1] + 1)
        struck.append(len(run.lives()))
        resize(run, nodes)
    assert_survived(run, alone, struck[1:])
    record = run.lives()
    ended = [record[number - 1] for number in struck[1:]]
    assert [life.in_order for life in ended] == [True, True, False, False, *[True] * len(sizes)]
    assert ended[0].ended.reason == "SIGUSR1: saved and stopped"
    assert ended[1].ended.reason == "SIGTERM: saved and stopped"
    assert ended[2].ended.reason == "another node was lost"
    assert "left no word" in ended[3].ended.reason
    assert [record[number].began.nodes for number in struck] == [2, 2, 2, 2, 2, *sizes]


def test_scancel_saves_and_does_not_requeue(slurm_cluster, tmp_path):
    run = start(slurm_cluster, tmp_path)
    run.wait_for_training()
    slurm_cluster.run(["scancel", str(run.id)])
    run.wait_for_line("not started again")
    job = run.wait_for_end()
    assert (job.state, job.restarts) == ("CANCELLED", 0)
    state = run.state()
    assert state["status"] == "stopped"
    assert (run.folder / f"checkpoints/step-{state['step']:08d}").is_dir()


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", range(TIMES))
def test_each_of_them_often(slurm_cluster, tmp_path, alone, way, count):
    """At a random moment of the training."""
    run = start(slurm_cluster, tmp_path)
    run.wait_for_training(steps=random.Random(f"{way} {count}").randrange(1, STEPS // 2))
    assert_survived(run, alone, [strike(run, way)])


@pytest.mark.long
@pytest.mark.parametrize("count", range(TIMES))
def test_scancel_often(slurm_cluster, tmp_path, count):
    test_scancel_saves_and_does_not_requeue(slurm_cluster, tmp_path)


def test_three_lives_in_a_row_without_a_newer_checkpoint_are_enough(slurm_cluster, tmp_path):
    """A launcher that is killed before it has saved anything: put back twice, then no more."""
    run = submit(slurm_cluster, tmp_path, ["--nodes=1", "--cpus-per-task=1"], "checkpoint.every=1000 steps")
    for life in (1, 2, 3):
        run.wait_until(lambda life=life: len(run.lives()) == life, f"life {life}")  # type: ignore[misc]
        claim = run.folder / f"generations/{life}/nodes/node0.json"
        run.wait_until(lambda claim=claim: read_json(claim) is not None, "the launcher")  # type: ignore[misc]
        _kill_launcher(run, 0)
    job = run.wait_for_end()
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 10, 3), run.log_text()
    assert "3 launches in a row saved nothing new" in run.log_text()


def held(cluster: Cluster, folder: Path, nodes: Sequence[str], more: str = "") -> Submitted:
    """A job at whose first start nodes answer so late that the permission to start a step on them has expired."""
    site = folder / "site.sh"
    site.write_text(f"if ((${{SLURM_RESTART_COUNT:-0}} == 0)); then {cluster.hold_nodes(*nodes)} {more} fi\n")
    variables = {"DIST_TRAIN_SITE": str(site)}
    return submit(cluster, folder, TWO_NODES, SIXTY_STEPS, environment=variables)


@pytest.mark.parametrize("nodes", [NODES, NODES[1:]], ids=["both", "one"])
def test_launchers_that_slurm_could_not_start_are_started_again(slurm_cluster, tmp_path, nodes):
    run = held(slurm_cluster, tmp_path, nodes)
    job = run.wait_for_end()
    assert (job.state, job.exit_code) == ("COMPLETED", 0), run.log_text()
    assert "srun could not start the launchers (its exit code is 167): once more" in run.log_text()
    assert run.lives()[-1].ended.reason == "stopped, as the config says"


def test_a_time_limit_before_slurm_could_start_the_launchers_puts_the_job_back(slurm_cluster, tmp_path):
    folder = "mkdir -p runs/digits/slurm-$SLURM_JOB_ID"  # as the command that submits a job does
    run = held(slurm_cluster, tmp_path, NODES, more=f"{folder}; (sleep 2; kill -USR1 $$) &")
    job = run.wait_for_end()
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", 0, 1), run.log_text()


def test_without_scontrol_on_the_node_it_ends_with_75_and_says_what_to_do(slurm_cluster, tmp_path):
    """Host lists are expanded by our own parser, and nothing is put back."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("srun", "env", "bash"):
        (programs / name).symlink_to(next(p for p in ("/usr/bin", "/bin") if (Path(p) / name).exists()) + f"/{name}")
    run = submit(slurm_cluster, tmp_path, [*TWO_NODES, f"--export=ALL,PATH={programs}"])
    run.wait_for_training()
    time_limit(run)
    job = run.wait_for_end()
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 75, 0), run.log_text()
    assert f"this node has no scontrol. To go on: scontrol requeue {run.id}" in run.log_text()


@pytest.mark.long
def test_an_orphan_of_an_older_life_that_wakes_up_changes_nothing(slurm_cluster, tmp_path, alone):
    """Each node sees its own processes only, as on two machines: the new life can neither see nor end the old rank.

    The old launcher is the first of its process ids, so the kernel would end the others with it: it is frozen, too.
    """
    run = start(slurm_cluster, tmp_path, *EXECUTED, DIST_TRAIN_PREFIX="unshare --fork --pid --mount-proc")
    run.wait_for_training(steps=15)
    orphan, agent = _stop_rank_0(run)
    launcher = _parent(agent)
    os.kill(launcher, signal.SIGSTOP)
    for name in NODES:
        slurm_cluster.kill_node(name, spare=(orphan, agent, launcher))
    for name in NODES:
        slurm_cluster.start_node(name)
    assert_survived(run, alone, [1])
    before = _contents(run.folder)
    os.kill(orphan, signal.SIGCONT)
    wait_until(lambda: not Path(f"/proc/{orphan}").exists() or _is_zombie(orphan), 120, "the orphan to end")
    os.kill(launcher, signal.SIGKILL)
    assert _contents(run.folder) == before
    assert fingerprint(run.folder) == alone


@pytest.mark.long
def test_an_older_life_on_the_same_machine_is_ended_by_the_next(slurm_cluster, tmp_path, alone):
    run = start(slurm_cluster, tmp_path, *EXECUTED)
    run.wait_for_training(steps=15)
    orphan, agent = _stop_rank_0(run)
    for name in NODES:
        slurm_cluster.kill_node(name, spare=(orphan, agent))
    for name in NODES:
        slurm_cluster.start_node(name)
    run.wait_for_training(2)
    assert not any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in (orphan, agent))
    assert_survived(run, alone, [1])


def _stop_rank_0(run: Submitted) -> tuple[int, int]:
    """Freezes rank 0 and its agent, which would end it. Returns their ids."""
    ranks = run.cluster.pids_on(NODES[0], "-m dist_train")
    rank = next(pid for pid in ranks if _variable(pid, "RANK") == "0")
    agent = _parent(rank)
    for pid in (agent, rank):
        os.kill(pid, signal.SIGSTOP)
    return rank, agent


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _variable(pid: int, name: str) -> str | None:
    lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = next((line for line in lines if line.startswith(f"{name}=".encode())), None)
    return found.decode().partition("=")[2] if found else None


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _contents(folder: Path) -> dict[str, str]:
    """Of the run, but for what each process keeps for itself: its log, and how it ended."""
    files = (path for path in folder.rglob("*") if path.is_file())
    ours = {path.relative_to(folder): path for path in files}
    kept = {name: path for name, path in ours.items() if name.parts[0] not in ("logs", "generations")}
    return {str(name): hashlib.sha256(path.read_bytes()).hexdigest() for name, path in kept.items()}
