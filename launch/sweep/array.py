"""The points as tasks of one SLURM array: task N is point N. A requeued task returns to its own run directory."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dist_train.config.schema import RunConfig
from launch.console import say
from launch.slurm import queue, submission
from launch.slurm.render import Script
from launch.sweep import table
from launch.sweep.store import Sweep

QUEUE_POLL_S = (1.0, 10.0)
"""Between two queries of the queue: rises from the first to the last while nothing changes."""


def plan_array(
    sweep: Sweep, configs: Mapping[str, RunConfig], at_once: int | None, options: Sequence[str]
) -> tuple[Script, dict[int | None, submission.Training]]:
    """The script, which contains no value of any point, and the trainings of its tasks. Creates nothing.

    Args:
        configs: of the points to run, by name.
        options: for each `dist-train train`.

    Raises:
        UserError: when a point could not start, or is already queued.
    """
    runs: dict[int | None, submission.Training] = {
        number: submission.Training(config=configs[point.name], folder=sweep.run_dir(point), options=tuple(options))
        for number, point in enumerate(sweep.points)
        if point.name in configs
    }
    first = next(iter(configs.values()))
    for run in runs.values():
        submission.check_startable(run, first.slurm)
    script = submission.script_of(first.name, first.slurm, runs, sweep.folder, at_once)
    return replace(script, folder=sweep.cwd), runs


def follow_tasks(sweep: Sweep, jobs: Sequence[str]) -> None:
    """Returns when no task is queued or running any more; reports every change on the way."""
    told: dict[str, str] = {}
    over, pause = 0, QUEUE_POLL_S[0]
    while over < 2:  # a task that is about to be requeued may look finished once
        found = queue.look(jobs)
        over = over + 1 if found is not None and not any(entry.active for entry in found.values()) else 0
        now = {row.point.name: row.state for row in table.read_table(sweep)}
        changed = {name: state for name, state in now.items() if told.get(name, table.QUEUED) != state}
        for name in sorted(changed):
            say(f"  {name} {changed[name]}")
        told = now
        pause = QUEUE_POLL_S[0] if changed or over else min(1.5 * pause, QUEUE_POLL_S[1])
        time.sleep(pause)
