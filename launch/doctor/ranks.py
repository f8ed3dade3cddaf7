"""Starts ranks with the launcher itself; they measure each other."""

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dist_train.config.replies import RanksMeasured
from dist_train.config.requests import BenchRanksRequest, to_arguments
from dist_train.errors import ExitCode
from dist_train.rundir.codec import read_json, read_record
from dist_train.rundir.layout import FIRST_NODE, RunDir

from ..children import isolated
from ..plan import LaunchPlan
from ..supervisor import supervise
from . import speed
from .finding import Finding, problem

MODULE = "dist_train.commands.bench_ranks"


class Stopped(Exception):
    """The ranks were stopped by a signal; its argument is the exit code."""


def findings(plan: LaunchPlan, *, cores: int) -> list[Finding]:
    """Starts the plan's ranks on this node and judges what they measure.

    Raises:
        Stopped: when a signal ended it.
    """
    folder = Path(tempfile.mkdtemp(prefix="dist-train-doctor-"))
    outcome = folder / "measured.json"
    with ExitStack() as at_the_end:
        at_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
        started = replace(
            plan,
            folder=folder,
            environment={**plan.environment, "TMPDIR": str(folder)},  # torch's agent leaves a folder behind
            program=isolated(MODULE),
            arguments=tuple(to_arguments(BenchRanksRequest(outcome=str(outcome), backend=plan.backend))),
            resume=None,
            flags=replace(plan.flags, max_restarts=0),
        )
        code = supervise(started)
        if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED, ExitCode.REQUEUE):
            raise Stopped(code)
        measured = read_record(RanksMeasured, outcome)
        if code == ExitCode.DONE and measured is not None:
            return speed.judge(measured, cores=cores, ranks_here=plan.ranks_per_node)
        at_the_end.pop_all()  # their logs are kept
        stage = (read_json(outcome) or {}).get("stage", "joining each other")
    cause = read_json(RunDir(folder).generation(1).verdict(FIRST_NODE)) or {}
    text = f"{plan.ranks_per_node} ranks failed while {stage} over {plan.backend}, with exit code {code}"
    advice = f"the lines above say why; their logs: {RunDir(folder).logs}"
    return [problem("ranks", text, advice, exit_code=code, stage=stage, verdict=cause)]
