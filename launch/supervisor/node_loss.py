"""A rank that has lost its peer knows no more than that. What the other nodes say decides what is to be done."""

import time

from dist_train.errors import ExitCode
from dist_train.rundir.codec import read_record
from dist_train.rundir.layout import GenerationDir
from dist_train.rundir.records import VerdictSummary
from launch.console import mark, say
from launch.plan import LaunchPlan

WORD_S = 10.0
"""Seconds that another node has to write down why its ranks have ended; one that is gone never will."""
ECHOES = ("peer", "ended")


def agreed_code(plan: LaunchPlan, generation: GenerationDir, code: int, *, last: bool) -> int:
    """The exit code of a generation in which this node's ranks have only lost another: that other's, if it says why.

    Args:
        generation: its folder, which holds this node's own verdict already.
        code: this node's own.
        last: it will not be started again by us.

    Returns:
        75 when a node was lost, so that the scheduler starts again on nodes that live.
    """
    if plan.scheduler is None or plan.nodes == 1 or plan.node is None:
        return code
    verdicts = _verdicts(plan, generation)
    cause = next((one for one in verdicts.values() if one and _is_cause(one)), None)
    if cause is not None:
        return cause.exit_code
    silent = [f"node {node}" for node, one in verdicts.items() if one is None]
    if silent:
        say(f"{mark('!', 'yellow')} {', '.join(silent)} left no word: lost, or the launcher there was killed")
        return ExitCode.REQUEUE
    return ExitCode.REQUEUE if last and any(one and one.cause for one in verdicts.values()) else code


def _verdicts(plan: LaunchPlan, generation: GenerationDir) -> dict[int, VerdictSummary | None]:
    """Of the other nodes, by number; None of one that has written none when the time is over."""
    others = [node for node in range(plan.nodes) if node != plan.node]
    deadline = time.monotonic() + WORD_S
    while True:
        found = {node: read_record(VerdictSummary, generation.verdict(f"node{node}")) for node in others}
        if all(found.values()) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _is_cause(verdict: VerdictSummary) -> bool:
    return verdict.cause is not None and verdict.cause.kind not in ECHOES
