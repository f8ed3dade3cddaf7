"""What the launcher finds out about a machine: from files laid out as Linux, NVIDIA and SLURM lay them out."""

from pathlib import Path

import pytest

from dist_train.errors import UserError
from dist_train.memory import memory
from launch.plan import host
from launch.slurm import hostlist
from launch.slurm.place import INTERACTIVE_STEP, find_place


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu07", ["gpu07"]),
        ("n[01-03,7],gpu-a[1-2]b", ["n01", "n02", "n03", "n7", "gpu-a1b", "gpu-a2b"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("a,b", ["a", "b"]),
    ],
)
def test_host_lists(text, names):
    assert hostlist.host_names(text) == names


@pytest.mark.parametrize("text", ["", "n[1-", "n[2-1]", "n[a]", "n1,,n2", "n]1["])
def test_what_is_no_host_list_is_refused(text):
    with pytest.raises(ValueError, match="host list"):
        hostlist.host_names(text)


def test_cpu_quota_of_cgroup_2_is_the_smallest_on_the_way_up(tmp_path: Path):
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "cpu.max").write_text("350000 100000\n")
    (tmp_path / "job" / "step" / "cpu.max").write_text("max 100000\n")
    assert host.cpu_quota("0::/job/step\n", tmp_path) == 3
    assert host.cpu_quota("0::/\n", tmp_path) is None


def test_cpu_quota_of_cgroup_1(tmp_path: Path):
    folder = tmp_path / "cpu,cpuacct" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("50000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert host.cpu_quota("5:memory:/\n4:cpu,cpuacct:/job\n", tmp_path) == 1
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert host.cpu_quota("4:cpu,cpuacct:/job\n", tmp_path) is None


def test_gpus_are_counted_without_torch(tmp_path: Path):
    for number in range(4):
        (tmp_path / "proc/driver/nvidia/gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    assert host.physical_gpus(tmp_path) == 4
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert host.physical_gpus(tmp_path) == 2  # a container with two of them


@pytest.mark.parametrize(
    ("listed", "count"),
    [(None, 4), ("", 0), ("-1", 0), ("0,1", 2), ("2", 1), ("0,9,1", 1), ("GPU-a1b2,GPU-c3d4", 2), ("NoDevFiles", 0)],
)
def test_cuda_visible_devices(listed, count):
    assert host.visible_gpus({} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}, 4) == count


STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_CPUS_PER_TASK": "16",
}


def test_a_slurm_step():
    found = find_place(STEP)
    assert found is not None
    assert (found.job, found.nodes, found.node, found.head, found.restarts, found.cpus) == (
        "4711",
        2,
        1,
        "gpu07",
        0,
        16,
    )


def test_an_array_task_is_named_as_it_is_requeued():
    found = find_place({**STEP, "SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11", "SLURM_RESTART_COUNT": "2"})
    assert found is not None
    assert (found.job, found.job_number, found.restarts) == ("4700_11", 4711, 2)


def test_a_step_of_fewer_nodes_than_the_job():
    step = {
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "gpu08",
        "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": "1",
    }
    found = find_place({**STEP, **step})
    assert found is not None and (found.nodes, found.head) == (1, "gpu08")


@pytest.mark.parametrize("missing", ["SLURM_JOB_ID", "SLURM_NODEID"])
def test_outside_a_step_there_is_no_slurm(missing):
    assert find_place({name: value for name, value in STEP.items() if name != missing}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SLURM_NNODES": None}, "SLURM_NNODES is missing"),
        ({"SLURM_JOB_NODELIST": None}, "SLURM_JOB_NODELIST is missing"),
        ({"SLURM_NNODES": "two"}, "SLURM_NNODES is 'two'"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID is 2, and there are 2 nodes"),
        ({"SLURM_JOB_NODELIST": "gpu07"}, "gpu07, which is not 2 nodes"),
        ({"SLURM_NTASKS": "8"}, "--ntasks-per-node=1"),
    ],
)
def test_what_slurm_says_wrong_is_named(change, words):
    environ = {name: value for name, value in {**STEP, **change}.items() if value is not None}
    with pytest.raises(UserError, match=words):
        find_place(environ)


def test_a_batch_script_and_a_shell_of_the_allocation_are_places_of_one_node():
    """On the first of the job's nodes, with all that the job has there; a person's shell may start several runs."""
    first = {**STEP, "SLURM_NODEID": "0", "SLURM_CPUS_ON_NODE": "32"}
    batch = find_place({name: value for name, value in first.items() if name != "SLURM_STEP_ID"})
    salloc = find_place({**first, "SLURM_STEP_ID": INTERACTIVE_STEP})
    pty = find_place({**first, "SLURM_PTY_PORT": "1"})
    for found, interactive in ((batch, False), (salloc, True), (pty, True)):
        assert found is not None
        assert (found.nodes, found.node, found.hosts, found.cpus) == (1, 0, ("gpu07",), 32)
        assert found.interactive is interactive


def test_this_machine():
    found = host.look({})
    assert found.cores >= 1 and found.gpus >= 0 and found.place is None


@pytest.mark.parametrize(
    ("groups", "folder", "names"),
    [
        ("0::/job\n", "job", ("memory.max", "memory.current", "memory.peak")),
        (
            "4:memory:/job\n",
            "memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes"),
        ),
    ],
)
def test_memory_is_the_tightest_limit_of_both_cgroup_versions(tmp_path, groups, folder, names):
    (tmp_path / folder).mkdir(parents=True)
    for name, value in zip(names, (1000, 300, 900), strict=True):
        (tmp_path / folder / name).write_text(f"{value}\n")
    found = memory(groups, tmp_path)
    assert (found.limit, found.used, found.peak, found.is_cgroup) == (1000, 300, 900, True)
    (tmp_path / folder / names[0]).write_text("max\n" if "max" in names[0].split(".") else str(1 << 62))
    assert not memory(groups, tmp_path).is_cgroup
