"""An allocation in whose shell the command was typed: the launcher starts itself on all its nodes, with srun.

That is so in the shell of an salloc, wherever it is; in a batch script of several nodes; and in `srun --pty` of several
nodes, where only the first has a terminal. A launcher that srun has started, one on each node, is in a step
(place.py).
"""

import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dist_train.errors import ExitCode, UserError
from launch.processes import die_with_parent, send
from launch.signals import ReceivedSignals
from launch.slurm import hostlist
from launch.slurm.place import INTERACTIVE_STEP

POLL_S = 0.5
"""Between two looks at srun; a signal or its end wakes at once."""
OURS = ("SLURM_PTY_PORT", "SLURM_PTY_WIN_COL", "SLURM_PTY_WIN_ROW", "SLURM_LABELIO")
"""What belongs to the step around us, and would be taken for the new one's."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Nodes that are ours, none of which runs a launcher yet.

    Attributes:
        cpus: cores that we have on each of the nodes, at least.
        interactive: it was typed in a shell, and is no part of a batch script.
    """

    job: str
    nodes: int
    cpus: int | None
    interactive: bool


def find_allocation(environ: Mapping[str, str]) -> Allocation | None:
    """None outside of one, and where srun has started this process on every node that it is to run on.

    Raises:
        UserError: when variables are missing or contradict each other.
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    step = environ.get("SLURM_STEP_ID")
    in_step = step not in (None, INTERACTIVE_STEP)
    if in_step and not ("SLURM_PTY_PORT" in environ and environ.get("SLURM_STEP_NUM_NODES", "1") != "1"):
        return None
    if in_step and environ.get("SLURM_PROCID", "0") != "0":
        raise UserError("srun --pty on several nodes: the terminal is the first one's, so leave --pty out")
    nodes = _nodes(environ)
    elsewhere = "SLURM_NODEID" not in environ  # the shell of an salloc stays where it was called, on a login node
    if nodes == 1 and not elsewhere:
        return None
    interactive = elsewhere or step is not None
    return Allocation(job=environ["SLURM_JOB_ID"], nodes=nodes, cpus=_cpus(environ), interactive=interactive)


def _nodes(environ: Mapping[str, str]) -> int:
    listed = _needed(environ, "SLURM_JOB_NODELIST")
    try:
        names = hostlist.host_names(listed)
    except ValueError as error:
        raise UserError(f"SLURM_JOB_NODELIST: {error}") from None
    given = environ.get("SLURM_JOB_NUM_NODES") or _needed(environ, "SLURM_NNODES")
    if given != str(len(names)):
        raise UserError(f"SLURM contradicts itself: SLURM_JOB_NODELIST is {listed}, which is not {given} nodes")
    return len(names)


def _needed(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise UserError(
            f"in a SLURM allocation (SLURM_JOB_ID is {environ['SLURM_JOB_ID']}), but {name} is missing: start from the "
            "shell that salloc gave, or give --standalone to use this machine alone"
        )
    return environ[name]


def _cpus(environ: Mapping[str, str]) -> int | None:
    """The fewest of `SLURM_JOB_CPUS_PER_NODE`, which is written as `8(x2),4`."""
    found = re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return min((int(number) for number in found), default=None)


def srun(allocation: Allocation, nodes: int, command: Sequence[str]) -> list[str]:
    """The command that starts `command` once on each node, with all cores and GPUs that we have there.

    Raises:
        UserError: when there are not so many nodes.
    """
    if nodes > allocation.nodes:
        raise UserError(
            f"--nnodes {nodes}: job {allocation.job} has {allocation.nodes} node{'s' * (allocation.nodes > 1)}"
        )
    cores = [f"--cpus-per-task={allocation.cpus}"] * (allocation.cpus is not None)
    tasks = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", *cores]
    # --overlap: with the step of the shell that this was typed in, which holds everything and needs nothing.
    return ["srun", *tasks, "--overlap", "--kill-on-bad-exit=0", "--wait=300", "--unbuffered", "--input=none", *command]


def run_srun(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs `srun …` to its end and hands signals on; Ctrl-C and SIGTERM too mean: save and stop, twice: at once.

    Returns:
        The launchers' exit code.

    Raises:
        UserError: when there is no srun.
    """
    environment = {name: value for name, value in environ.items() if name not in OURS}
    with ReceivedSignals() as inbox:
        try:
            # A session of its own: srun would take the terminal's Ctrl-C for a question about its own state.
            step = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
        except FileNotFoundError:
            raise UserError(
                "in a SLURM allocation, and there is no srun to start on its nodes: put it on PATH, or give "
                "--standalone to use this machine alone"
            ) from None
        asked = False
        while step.poll() is None:
            if inbox.kill is not None:
                send(step.pid, signal.SIGTERM)  # srun ends the step with SIGKILL
            elif inbox.stop is not None and not asked:
                asked = True
                send(step.pid, signal.SIGUSR1)  # the only request to stop that srun hands on
            for number in inbox.take_others():
                send(step.pid, number)
            inbox.wait(POLL_S)
        if inbox.stop == signal.SIGINT and (inbox.kill or step.returncode == ExitCode.REQUEUE):
            return ExitCode.INTERRUPTED
    return step.returncode if step.returncode >= 0 else 128 - step.returncode
