"""Runs a command's work on ranks of this machine: they read a run and write nothing into it."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.config.requests import to_arguments
from dist_train.errors import ExitCode

from ..configs import program_for

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig

LOGS_WANTED = (ExitCode.USER_CODE, ExitCode.OUT_OF_MEMORY, ExitCode.HANG)
"""Exit codes whose message names a log file."""


def run_on_ranks(name: str, config: "RunConfig", nproc_per_node: str | None, request: Callable[[Path], object]) -> int:
    """Runs dist_train.commands.NAME on ranks, with logs in a temporary folder; returns the command's exit code.

    Args:
        request: makes the request; its argument is a file in which rank 0 may leave an exit code other than 0.

    Raises:
        UserError: when ranks cannot be started as asked.
    """
    from dist_train.rundir.codec import read_json

    from ..plan import host, make_plan
    from ..plan.flags import Flags
    from ..supervisor import supervise

    folder = Path(tempfile.mkdtemp(prefix=f"dist-train-{name}-"))
    outcome = folder / "outcome.json"
    code: int | None = None
    try:
        plan = make_plan(
            config,
            Flags(nproc_per_node=nproc_per_node, standalone=True),
            host.look(),
            folder=folder,
            program=program_for(f"dist_train.commands.{name}", config),
            arguments=tuple(to_arguments(request(outcome))),
        )
        code = supervise(plan)
        if code == ExitCode.DONE:
            code = (read_json(outcome) or {}).get("exit_code", code)
        return code
    finally:
        if code not in LOGS_WANTED:
            shutil.rmtree(folder)
