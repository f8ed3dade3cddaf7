"""Our place in a SLURM job step, from its environment."""

import os
import re
from collections.abc import Mapping
from typing import Any

from dist_train.errors import UserError

from ..job import Place
from . import hostlist

NAME = "slurm"
"""The section of a config, the folder in a run directory, and how the name of a job's run begins."""
VARIABLES = r"SLURM_.+"
"""What it tells its jobs."""
INTERACTIVE_STEP = str(0xFFFFFFFA)
"""The step of salloc's own shell, with `LaunchParameters=use_interactive_step`."""


def find_place(environ: Mapping[str, str]) -> Place | None:
    """Our place in the job; None outside of one and in salloc's shell on another machine (allocation.py).

    A batch script, and an allocation's shell on its first node, count as one node.

    Raises:
        UserError: when variables are missing or contradict each other, or srun started more than one task per node.
    """
    if "SLURM_JOB_ID" not in environ or "SLURM_NODEID" not in environ:
        return None
    in_step = "SLURM_STEP_ID" in environ
    interactive = "SLURM_PTY_PORT" in environ or environ.get("SLURM_STEP_ID") == INTERACTIVE_STEP
    nodes = _number(environ, "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in environ else "SLURM_NNODES")
    node = _number(environ, "SLURM_NODEID")
    listed = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in environ else "SLURM_JOB_NODELIST"
    names = node_names(_needed(environ, listed), listed, nodes)
    if node >= nodes:
        raise UserError(f"SLURM contradicts itself: SLURM_NODEID is {node}, and there are {nodes} nodes")
    if in_step and environ["SLURM_STEP_ID"] != INTERACTIVE_STEP:
        tasks = _number(environ, "SLURM_STEP_NUM_TASKS", _number(environ, "SLURM_NTASKS", nodes))
        if tasks > nodes:
            raise UserError(
                f"srun started {tasks} tasks on {nodes} node{'s' * (nodes > 1)}, and one launcher per node starts all "
                "ranks there: use --ntasks-per-node=1 (and --cpus-per-task for the cores)"
            )
    if not in_step or interactive:
        nodes, node, names = 1, 0, names[node : node + 1]
    # Of a step's task (--cpus-per-task), or the job's on the node of a batch script or a shell.
    variables = ["SLURM_CPUS_PER_TASK"] * (in_step and not interactive) + ["SLURM_CPUS_ON_NODE"]
    cores = [environ.get(name, "") for name in variables]
    return Place(
        scheduler=NAME,
        job=_job_id(environ),
        job_number=_number(environ, "SLURM_JOB_ID"),
        nodes=nodes,
        node=node,
        head=names[0],
        restarts=_number(environ, "SLURM_RESTART_COUNT", 0),
        cpus=next((max(1, int(value)) for value in cores if value.isdigit()), None),
        hosts=tuple(names),
        step=environ.get("SLURM_STEP_ID", "batch"),
        interactive=interactive,
    )


def without_job(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of a job."""
    return {name: value for name, value in environ.items() if not re.fullmatch(VARIABLES, name)}


def step_facts(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """How SLURM identifies this launcher, for `dist-train stop`: job, step and number of requeues."""
    if "SLURM_JOB_ID" not in environ:
        return {}
    number = environ.get("SLURM_STEP_ID")
    return {
        "job": _job_id(environ),
        "step": f"{environ['SLURM_JOB_ID']}.{number}" if number else None,
        "restarts": _number(environ, "SLURM_RESTART_COUNT", 0),
    }


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in environ and default is not None:
        return default
    value = _needed(environ, name)
    if not value.isdigit():
        raise UserError(f"{name} is {value!r}, not a whole number")
    return int(value)


def _needed(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise UserError(f"in a SLURM job (SLURM_JOB_ID is set), but {name} is missing: start with srun or sbatch")
    return environ[name]


def node_names(listed: str, name: str, nodes: int | str) -> list[str]:
    """The nodes in `listed`, which is the variable `name`.

    Raises:
        UserError: when there is no such list, or these are not as many as SLURM says elsewhere.
    """
    try:
        names = hostlist.host_names(listed)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    if str(len(names)) != str(nodes):
        raise UserError(f"SLURM contradicts itself: {name} is {listed}, which is not {nodes} nodes")
    return names


def _job_id(environ: Mapping[str, str]) -> str:
    if "SLURM_ARRAY_JOB_ID" in environ and "SLURM_ARRAY_TASK_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]
