"""`dist-train evaluate`."""

import shutil
import sys
import tempfile
from pathlib import Path

import click

from dist_train.config.errors import ExitCode, UserError
from launch.commands.common import DASHES_AND_UNDERSCORES, json_option, load

MODULE = "dist_train.commands.evaluate"


@click.command(context_settings=DASHES_AND_UNDERSCORES)
@click.argument("run_or_checkpoint", type=click.Path(exists=True, file_okay=False))
@click.option("--split", type=click.Choice(["evaluation", "test", "train"]), default="evaluation", show_default=True)
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks. The figures do not depend on it.")
@json_option("One JSON object on stdout, with loss, accuracy, precision, … at its top level.")
def command(run_or_checkpoint: str, split: str, nproc_per_node: str | None, as_json: bool) -> None:
    """Metrics of a run's or a checkpoint's model on data that it was not trained on.

    Of a run, the best checkpoint is evaluated. Nothing is written into it.
    """
    from launch import host, run_dirs
    from launch.plan import Flags, make_plan
    from launch.supervisor import supervise

    found = run_dirs.config_of(run_or_checkpoint, None)
    if found is None:
        raise UserError(f"{run_or_checkpoint}: neither a run directory nor a checkpoint of one (no config.yaml)")
    config = load(str(found), ())
    folder = Path(tempfile.mkdtemp(prefix="dist-train-evaluate-"))
    plan = make_plan(
        config,
        Flags(nproc_per_node=nproc_per_node, standalone=True),
        host.look(),
        folder=folder,
        program=("-m", MODULE),
        arguments=(run_or_checkpoint, "--split", split, *["--json"] * as_json),
        resume=None,
    )
    code = supervise(plan)
    if code == ExitCode.DONE:  # else its logs are wanted
        shutil.rmtree(folder)
    sys.exit(code)
