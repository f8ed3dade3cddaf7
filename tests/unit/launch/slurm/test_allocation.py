"""Where a command in a SLURM allocation starts itself, and on how many nodes."""

import pytest

from dist_train.errors import UserError
from launch.slurm import allocation
from launch.slurm.place import INTERACTIVE_STEP

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "2",
    "SLURM_JOB_CPUS_PER_NODE": "64,32",
}
FIRST = {"SLURM_NODEID": "0", "SLURM_PROCID": "0"}
ONE = {"SLURM_JOB_NODELIST": "gpu07", "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1"}
PTY = {**FIRST, "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "40001"}


@pytest.mark.parametrize(
    ("change", "nodes", "interactive"),
    [
        ({}, 2, True),  # the shell of an salloc, where it was called
        (ONE, 1, True),
        ({**FIRST, "SLURM_STEP_ID": INTERACTIVE_STEP, "SLURM_STEP_NUM_NODES": "1"}, 2, True),  # on its first node
        (FIRST, 2, False),  # a batch script
        ({**PTY, "SLURM_STEP_NUM_NODES": "2"}, 2, True),
    ],
)
def test_it_starts_itself_where_no_launcher_runs_on_the_nodes(change, nodes, interactive):
    found = allocation.find_allocation({**JOB, **change})
    assert found is not None
    assert (found.job, found.nodes, found.interactive, found.cpus) == ("4711", nodes, interactive, 32)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {**JOB, **FIRST, "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_NODES": "2"},  # srun has started us on each
        {**JOB, **ONE, **FIRST},  # a batch script of one node
        {**JOB, **ONE, **FIRST, "SLURM_STEP_ID": INTERACTIVE_STEP},
        {**JOB, **PTY, "SLURM_STEP_NUM_NODES": "1"},
    ],
)
def test_it_stays_where_it_is_the_launcher(environ):
    assert allocation.find_allocation(environ) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SLURM_JOB_NODELIST": None}, "SLURM_JOB_NODELIST is missing"),
        ({"SLURM_JOB_NUM_NODES": None, "SLURM_NNODES": None}, "SLURM_NNODES is missing"),
        ({"SLURM_JOB_NUM_NODES": "3"}, r"SLURM_JOB_NODELIST is gpu\[07-08\], which is not 3 nodes"),
        ({**PTY, "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "1"}, "leave --pty out"),
        ({"SLURM_JOB_NODELIST": "gpu[07-"}, "SLURM_JOB_NODELIST: .*no SLURM host list"),
    ],
)
def test_what_slurm_says_wrong_is_named(change, words):
    environ = {name: value for name, value in {**JOB, **change}.items() if value is not None}
    with pytest.raises(UserError, match=words):
        allocation.find_allocation(environ)


def test_srun_gets_one_task_a_node_with_all_cores():
    found = allocation.find_allocation(JOB)
    assert found is not None
    line = allocation.srun(found, 2, ["python", "-m", "dist_train.launch"])
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=32"} < set(line)
    assert line[-3:] == ["python", "-m", "dist_train.launch"]
    with pytest.raises(UserError, match="--nnodes 3: job 4711 has 2 nodes"):
        allocation.srun(found, 3, ["python"])
