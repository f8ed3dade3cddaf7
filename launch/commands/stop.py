"""`dist-train stop`."""

import sys
from pathlib import Path

import click

from dist_train.errors import ExitCode
from launch.console import say


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(), metavar="RUN...")
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until it has ended.")
def command(runs: tuple[str, ...], no_wait: bool) -> None:
    """Save a run and end it: its processes on this host, or its job in SLURM's queue, which is not requeued then.

    RUN is a run directory, or a folder with several, such as an array's: all are asked before any is waited for. One
    that waits in the queue is taken out of it. One that does not run is left as it is, exit code 0.
    """
    from launch.runs.stop import stop
    from launch.sweep.store import leader

    try:
        sys.exit(stop([Path(run) for run in runs], leader, wait=not no_wait))
    except KeyboardInterrupt:
        say("not waiting any longer; it has been asked to save and stop")
        sys.exit(ExitCode.INTERRUPTED)
