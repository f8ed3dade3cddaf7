"""Turns `dist-train train …` or `run …`, typed in an allocation, into one launcher on each of its nodes."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dist_train.errors import UserError
from launch.children import environment
from launch.console import say
from launch.slurm import allocation

BY_HAND = ("node_rank", "rdzv_endpoint", "rdzv_backend", "master_addr")
"""torchrun's flags that say how the nodes meet: whoever gives them starts each node by hand."""


def everywhere(flags: Mapping[str, Any], folder: Callable[[], Path], *, dry_run: bool = False) -> int | None:
    """Starts this command on all nodes if it was typed in the shell of an allocation.

    Args:
        flags: torchrun's, which win over SLURM.
        folder: chooses the run directory once for all nodes; not called if the job determines it.
        dry_run: only say what would be started.

    Returns:
        The launchers' exit code; None if there is nothing to start because this process is the launcher.

    Raises:
        UserError: when SLURM's variables are incomplete, or contradict each other or the flags.
    """
    found = None if stays_here(flags) else allocation.find_allocation(os.environ)
    if found is None:
        return None
    command, *rest = sys.argv[1:]
    where = ["--run-dir", str(folder())] if found.interactive else []
    words = [sys.executable, "-P", "-m", "launch", command, *where, *rest]
    line = allocation.srun(found, _nodes(flags, found), words)
    if dry_run:
        say(f"in the allocation of job {found.job}: {shlex.join(line)}\nnothing was started, nothing was written")
        return 0
    return allocation.run_srun(line, environment())


def stays_here(flags: Mapping[str, Any]) -> bool:
    """Whether torchrun's flags make this process the launcher of this node."""
    return bool(flags["standalone"]) or any(flags[name] is not None for name in BY_HAND)


def _nodes(flags: Mapping[str, Any], found: allocation.Allocation) -> int:
    given = flags["nnodes"]
    if given is None:
        return found.nodes
    low, _, high = given.partition(":")
    if not low.isdigit() or int(low) < 1 or high not in ("", low):
        raise UserError(f"--nnodes {given}: give one number of nodes, at most the {found.nodes} of job {found.job}")
    return int(low)
