"""`dist-train watch`."""

import sys
from pathlib import Path

import click

from dist_train.errors import UserError

from .. import completion


@click.command()
@click.argument("target", metavar="[RUN]", required=False, type=click.Path(), shell_complete=completion.runs)
@click.option("--logs", metavar="0,3|all", help="Show the logs of these ranks too.")
@click.option("--root", default="runs", show_default=True, type=click.Path(), help="Where the newest is.")
def command(target: str | None, logs: str | None, root: str) -> None:
    """Show a run, here or in a queue, as its own terminal does: figures, curves, progress, until it is over.

    Without RUN, the newest. It reads what the run writes, and leaves it alone: Ctrl-C ends the watching only. In a
    pipe it prints lines. Exit code 0 when the run is over, however it ended; 130 after Ctrl-C.
    """
    from dist_train.config.ranges import parse_ranks
    from dist_train.rundir.codec import read_json
    from dist_train.rundir.layout import RunDir
    from dist_train.rundir.runs import is_checkpoint

    from ..runs.listing import list_runs
    from ..runs.watch import watch

    known = () if target else sorted(list_runs(Path(root)), key=lambda run: run.updated or 0.0)
    folder = Path(target or (known[-1].path if known else root))
    folder = folder.resolve().parent.parent if is_checkpoint(folder) else folder
    if not RunDir(folder).is_run():
        raise UserError(f"{folder}: {'no such run; dist-train runs lists what there is' if target else 'no runs'}")
    found = read_json(RunDir(folder).environment)
    ranks = found.get("world_size") if isinstance(found, dict) else None
    sys.exit(watch(folder.resolve(), parse_ranks(logs, ranks if isinstance(ranks, int) else 2**30, "--logs") or ()))
