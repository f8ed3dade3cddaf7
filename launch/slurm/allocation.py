"""A command typed in the shell of an allocation starts launchers on all of its nodes, with srun.

That shell may be salloc's, on any machine; a batch script of several nodes; or `srun --pty` on several nodes, where
only the first has a terminal. A launcher that srun has started, one per node, is in a step (place.py).
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dist_train.errors import ExitCode, UserError

from ..children import PACKAGE, child_environment, drop_fork_server
from ..console import say
from ..processes import die_with_parent, send
from ..signals import ReceivedSignals
from .place import INTERACTIVE_STEP, node_names

BY_HAND = ("node_rank", "rdzv_endpoint", "rdzv_backend", "master_addr")
"""torchrun's flags that say how the nodes meet: whoever gives them starts each node by hand."""
POLL_S = 0.5
"""Between two looks at srun; a signal or srun's end wakes it at once."""
SRUNS_OWN = range(160, 255)
"""Exit codes of srun's own: SLURM could not start the launchers, since a node was slow to answer, say."""
NOT_STARTED = (1, 128 + signal.SIGUSR1, *SRUNS_OWN)
"""srun's exit codes where a signal has come before a launcher could take it."""
STARTS = 3
"""So often srun is called at most."""
OURS = ("SLURM_PTY_PORT", "SLURM_PTY_WIN_COL", "SLURM_PTY_WIN_ROW", "SLURM_LABELIO")
"""Variables of the step around us, which the new step would take for its own."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Nodes allocated to us, none of which runs a launcher yet.

    Attributes:
        cpus: the fewest cores that we have on any of the nodes.
        interactive: the command was typed in a shell and is not part of a batch script.
    """

    job: str
    nodes: int
    cpus: int | None
    interactive: bool


def everywhere(flags: Mapping[str, Any], folder: Callable[[], Path], *, dry_run: bool = False) -> None:
    """Starts this command on all nodes if it was typed in the shell of an allocation, and ends when they do. Returns if
    there is nothing to start because this process is the launcher.

    Args:
        flags: torchrun's, which win over SLURM.
        folder: chooses the run directory once for all nodes; not called if the job determines it.
        dry_run: only say what would be started.

    Raises:
        SystemExit: with the launchers' exit code.
        UserError: when SLURM's variables are incomplete, or contradict each other or the flags.
    """
    by_hand = flags["standalone"] or any(flags[name] is not None for name in BY_HAND)
    found = None if by_hand else find_allocation(os.environ)
    if found is None:
        return
    command, *rest = sys.argv[1:]
    where = ["--run-dir", str(folder())] if found.interactive else []
    words = [sys.executable, "-P", "-m", PACKAGE, command, *where, *rest]
    low, _, high = (flags["nnodes"] or str(found.nodes)).partition(":")
    if not low.isdigit() or int(low) < 1 or high not in ("", low):
        advice = f"give one number of nodes, at most the {found.nodes} of job {found.job}"
        raise UserError(f"--nnodes {flags['nnodes']}: {advice}")
    line = srun(found, int(low), words)
    if dry_run:
        say(f"in the allocation of job {found.job}: {shlex.join(line)}\nnothing was started, nothing was written")
        sys.exit(0)
    drop_fork_server()  # the ranks are not forked here, and this process waits for their end
    sys.exit(run_srun(line, child_environment()))


def find_allocation(environ: Mapping[str, str]) -> Allocation | None:
    """The allocation around us; None outside of one, or if srun has already started a launcher on each node.

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
    listed = _needed(environ, "SLURM_JOB_NODELIST")
    count = environ.get("SLURM_JOB_NUM_NODES") or _needed(environ, "SLURM_NNODES")
    nodes = len(node_names(listed, "SLURM_JOB_NODELIST", count))
    # salloc's shell stays on the machine where it was called, such as a login node.
    elsewhere = "SLURM_NODEID" not in environ
    if nodes == 1 and not elsewhere:
        return None
    cores = re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_JOB_CPUS_PER_NODE", ""))  # such as `8(x2),4`
    return Allocation(
        job=environ["SLURM_JOB_ID"],
        nodes=nodes,
        cpus=min(map(int, cores), default=None),
        interactive=elsewhere or step is not None,
    )


def _needed(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise UserError(
            f"in a SLURM allocation (SLURM_JOB_ID is {environ['SLURM_JOB_ID']}), but {name} is missing: start from the "
            "shell that salloc gave, or give --standalone to use this machine alone"
        )
    return environ[name]


def srun(allocation: Allocation, nodes: int, command: Sequence[str]) -> list[str]:
    """The srun command that starts `command` once on each node, with all our cores and GPUs there.

    Raises:
        UserError: when the allocation has fewer nodes.
    """
    if nodes > allocation.nodes:
        has = f"{allocation.nodes} node{'s' * (allocation.nodes > 1)}"
        raise UserError(f"--nnodes {nodes}: job {allocation.job} has {has}")
    cores = [f"--cpus-per-task={allocation.cpus}"] * (allocation.cpus is not None)
    tasks = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", *cores]
    # --overlap: the step of our own shell holds all resources and needs none.
    return ["srun", *tasks, "--overlap", "--kill-on-bad-exit=0", "--wait=300", "--unbuffered", "--input=none", *command]


def run_srun(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs `srun …` to its end and passes signals on. Ctrl-C and SIGTERM mean: save and stop; twice: at once.

    Returns:
        The launchers' exit code.

    Raises:
        UserError: when there is no srun.
    """
    environment = {name: value for name, value in environ.items() if name not in OURS}
    with ReceivedSignals() as signals:
        for number in range(1, STARTS + 1):
            code = _run_step(command, environment, signals)
            if code not in SRUNS_OWN or number == STARTS or signals.stop is not None:
                break
            say(f"srun could not start the launchers (its exit code is {code}): once more")
        if signals.stop == signal.SIGUSR1 and code in NOT_STARTED:
            return ExitCode.REQUEUE
        if signals.stop == signal.SIGINT and (signals.kill or code == ExitCode.REQUEUE):
            return ExitCode.INTERRUPTED
    return code if code >= 0 else 128 - code


def _run_step(command: Sequence[str], environment: Mapping[str, str], signals: ReceivedSignals) -> int:
    """Returns what Popen.returncode of srun is. Raises UserError when there is no srun."""
    try:
        # Its own session: srun would take the terminal's Ctrl-C for a request to report its state.
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
        if signals.kill is not None:
            send(step.pid, signal.SIGTERM)  # srun ends the step with SIGKILL
        elif signals.stop is not None and not asked:
            asked = True
            send(step.pid, signal.SIGUSR1)  # the only stop request that srun passes on
        for number in signals.take_others():
            send(step.pid, number)
        signals.wait(POLL_S)
    return step.returncode
