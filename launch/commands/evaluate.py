"""`dist-train evaluate`."""

import shutil
import sys
import tempfile
from pathlib import Path

import click

from dist_train.errors import ExitCode, UserError
from launch.commands.common import (
    DASHES_AND_UNDERSCORES,
    OverridesLast,
    json_option,
    load_recorded,
    program_for,
    trust_option,
)

MODULE = "dist_train.commands.evaluate"


@click.command(cls=OverridesLast, context_settings=DASHES_AND_UNDERSCORES)
@click.argument("run_or_checkpoint", type=click.Path(exists=True, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[a.b=c]...")
@click.option("--split", type=click.Choice(["evaluation", "test", "train"]), default="evaluation", show_default=True)
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks. The figures do not depend on it.")
@trust_option
@json_option("One JSON object on stdout, with loss, accuracy, precision, … at its top level.")
def command(
    run_or_checkpoint: str,
    overrides: tuple[str, ...],
    split: str,
    nproc_per_node: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Metrics of a run's or a checkpoint's model on data that it was not trained on.

    Of a run, the best checkpoint is evaluated. Nothing is written into it. Overrides of data, eval, loader and
    distributed say where the data is now: data.root=/elsewhere.
    """
    from launch.plan import host, make_plan
    from launch.plan.flags import Flags
    from launch.supervisor import supervise

    config = load_recorded(run_or_checkpoint, overrides, trust=trust)
    folder = Path(tempfile.mkdtemp(prefix="dist-train-evaluate-"))
    try:
        plan = make_plan(
            config,
            Flags(nproc_per_node=nproc_per_node, standalone=True),
            host.look(),
            folder=folder,
            program=program_for(MODULE, config),
            arguments=(run_or_checkpoint, *overrides, "--split", split, *["--json"] * as_json, "--trust"),
            resume=None,
        )
        code = supervise(plan)
    except UserError:
        shutil.rmtree(folder)
        raise
    if code == ExitCode.DONE:  # else its logs are wanted
        shutil.rmtree(folder)
    sys.exit(code)
