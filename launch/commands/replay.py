"""`dist-train replay`."""

import shutil
import sys
import tempfile
from pathlib import Path

import click

from dist_train.errors import ExitCode, UserError
from launch.commands.common import DASHES_AND_UNDERSCORES, json_option, load_recorded, program_for, trust_option

MODULE = "dist_train.commands.replay"
LOGS_WANTED = (ExitCode.USER_CODE, ExitCode.OUT_OF_MEMORY, ExitCode.HANG)


@click.command(context_settings=DASHES_AND_UNDERSCORES)
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--from-step", type=click.IntRange(1), required=True, metavar="A", help="The first step, counted from 1.")
@click.option("--to-step", type=click.IntRange(1), required=True, metavar="B", help="The last step.")
@click.option("--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks, up to batch.microbatches.")
@click.option(
    "--show", is_flag=True, help="Each microbatch's loss and samples, and the largest gradients by parameter."
)
@trust_option
@json_option("One JSON object on stdout.")
def command(
    run: str, from_step: int, to_step: int, nproc_per_node: str | None, show: bool, trust: bool, as_json: bool
) -> None:
    """Compute the steps A to B of a run again, and compare them with what it recorded.

    Begins at the nearest checkpoint before A. Says "bit-identical", or the first step and quantity that differ, with
    both values. Nothing is written into the run, which may still be going on. Exit code 0: the same; 1: not the same.
    """
    from dist_train.rundir.records import read_json
    from launch.plan import host, make_plan
    from launch.plan.flags import Flags
    from launch.supervisor import supervise

    if not (Path(run) / "config.yaml").exists():
        raise UserError(f"{run}: no run directory (no config.yaml)")
    config = load_recorded(run, (), trust=trust)
    folder = Path(tempfile.mkdtemp(prefix="dist-train-replay-"))
    verdict = folder / "replayed.json"
    window = ("--from-step", str(from_step), "--to-step", str(to_step))
    code: int | None = None
    try:
        plan = make_plan(
            config,
            Flags(nproc_per_node=nproc_per_node, standalone=True),
            host.look(),
            folder=folder,
            program=program_for(MODULE, config),
            arguments=(run, *window, *["--show"] * show, *["--json"] * as_json, "--verdict", str(verdict), "--trust"),
            resume=None,
        )
        code = supervise(plan)
        if code == ExitCode.DONE:
            code = read_json(verdict)["exit_code"]
    finally:
        if code not in LOGS_WANTED:
            shutil.rmtree(folder)
    sys.exit(code)
