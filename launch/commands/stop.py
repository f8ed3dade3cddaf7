"""`dist-train stop`."""

import sys
from pathlib import Path

import click

from dist_train.errors import ExitCode

from .. import completion
from ..console import say
from .common import json_option


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(), metavar="RUN...", shell_complete=completion.runs)
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until it has ended.")
@json_option("A JSON list of the runs on stdout, besides the messages.")
def command(runs: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Save a run and end it: its processes on this host, or its job in SLURM's queue, which is not requeued then.

    RUN is a run directory, or a folder with several, such as an array's: all are asked before any is waited for. One
    that waits in the queue is taken out of it. One that does not run is left as it is, exit code 0.
    """
    from ..runs.stop import stop
    from ..sweep.store import leader

    try:
        sys.exit(stop([Path(run) for run in runs], leader, wait=not no_wait, as_json=as_json))
    except KeyboardInterrupt:
        say("not waiting any longer; it has been asked to save and stop")
        sys.exit(ExitCode.INTERRUPTED)
