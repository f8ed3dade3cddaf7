"""`dist-train run`."""

import sys
from pathlib import Path
from typing import Any

import click

from dist_train.errors import ExitCode, UserError
from dist_train.rundir.codec import write_json
from dist_train.rundir.layout import RunDir
from dist_train.rundir.runs import make_run_dir, new_folder

from ..plan import LaunchPlan, count_nodes, host, make_plan
from ..plan.flags import Flags, as_words
from ..plan.requirements import Requirements
from ..scheduler import everywhere
from .common import json_option, launch_command, print_verdict
from .launch_flags import launch_flags, torchrun_flag

EPILOG = """\b
  dist-train run --nproc-per-node 4 train.py --lr 0.1
  dist-train run --nproc-per-node gpu -m package.train
  dist-train run --no-python ./program
Workers see torchrun's environment and defaults, but where you have not set them OMP_NUM_THREADS is a rank's share of
the cores and TORCH_NCCL_ASYNC_ERROR_HANDLING torch's own default, and the console shows rank 0 alone (--tee 3 shows
all); every rank's output is in its log.

\b
Ctrl-C, SIGTERM go to the workers, which have --grace seconds to end; a second one ends everything at once.
SIGUSR1, SIGUSR2 go to the workers that handle them; the others are sent SIGTERM for SIGUSR1, which ends with 75.

\b
In the shell of salloc or srun --pty it starts itself on all nodes of the allocation, with srun, as train does."""
SHUTDOWN_TIMEOUT_S = 30.0
"""torchrun's own --shutdown-timeout."""
PASSED_ON = ("role", "numa_binding", "virtual_local_rank", "event_log_handler")
"""Options that are left to torch's agent."""


@launch_command(epilog=EPILOG, options_last=True)
@launch_flags
@torchrun_flag("-m", "--module", is_flag=True, help="The program is a module.")
@torchrun_flag("--no-python", is_flag=True, help="The program is no Python: execute it.")
@torchrun_flag("--role", metavar="NAME", help="A name for the workers.")
@torchrun_flag("--numa-binding", metavar="node|socket|...", help="Bind each worker to CPUs near its GPU.")
@torchrun_flag("--virtual-local-rank", is_flag=True, help="Each worker sees its GPU alone, as number 0.")
@torchrun_flag("--event-log-handler", metavar="NAME", help="Of torch's elastic agent.")
@torchrun_flag("--shutdown-timeout", type=float, help="torchrun's name for --grace.")
@torchrun_flag("-r", "--redirects", hidden=True, expose_value=False, help="Every rank's output is in its log.")
@torchrun_flag("--start-method", hidden=True, expose_value=False, help="For functions; this starts programs.")
@torchrun_flag("--signals-to-handle", hidden=True, expose_value=False, help="SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 are.")
@torchrun_flag("--use-env", is_flag=True, hidden=True, expose_value=False, help="The only way there is.")
@click.option("--preload", metavar="MODULE,...", help="What to import once for all ranks, besides torch.")
@json_option("Print the verdict as one JSON object at the end, on stdout.")
@click.option("--run-dir", type=click.Path(file_okay=False), help="For logs and verdicts. [default: runs/NAME/<time>]")
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    program: str, arguments: tuple[str, ...], module: bool, no_python: bool, as_json: bool, **options: Any
) -> None:
    """Run any PROGRAM on several ranks, as torchrun does."""
    from ..supervisor import supervise

    words = _program(program, module, no_python)
    everywhere(options, lambda: Path(options["run_dir"] or new_folder(Path("runs") / _name(words))))
    plan = _plan(words, arguments, **options)
    make_run_dir(plan.folder)
    state = RunDir(plan.folder).state
    write_json(state, {"status": "running"})
    code = supervise(plan)
    if plan.node in (0, None):
        stopped = code in (ExitCode.REQUEUE, ExitCode.INTERRUPTED, ExitCode.TERMINATED)
        write_json(state, {"status": "stopped" if stopped else "done" if code == ExitCode.DONE else "failed"})
    if as_json:
        print_verdict(plan, code)
    sys.exit(code)


def _program(program: str, module: bool, no_python: bool) -> tuple[str, ...]:
    if module and no_python:
        raise UserError("--module is a Python module, and --no-python says that the program is none: give one of them")
    if module:
        return ("-m", program)
    if no_python:
        return ("--no-python", program)
    if not Path(program).is_file():
        raise UserError(f"{program}: no such file; a module is -m MODULE, another program --no-python PROGRAM")
    return (program,)


def _plan(
    program: tuple[str, ...], arguments: tuple[str, ...], preload: str | None, run_dir: str | None, **flags: Any
) -> LaunchPlan:
    passed_on = {name: flags.pop(name) for name in PASSED_ON}
    shutdown = flags.pop("shutdown_timeout")
    flags["nproc_per_node"] = flags["nproc_per_node"] or "1"
    flags["grace"] = flags["grace"] or shutdown or SHUTDOWN_TIMEOUT_S
    given, machine = Flags(**flags), host.look()
    modules = tuple(name.strip() for name in (preload or "").split(",") if name.strip() not in ("", "torch"))
    nodes = count_nodes(given, machine)
    if run_dir is None:
        root = Path("runs") / _name(program)
        job = machine.place.run_name if machine.place and nodes > 1 else given.rdzv_id
        if nodes > 1 and job is None:
            raise UserError(f"{nodes} nodes have to agree on one --run-dir DIR (or have the same --rdzv-id)")
        run_dir = str(root / job if job else new_folder(root))
    return make_plan(
        Requirements(preload=modules, passed_on=tuple(as_words(passed_on)), environment_wins=True),
        given,
        machine,
        folder=Path(run_dir),
        program=program,
        arguments=arguments,
    )


def _name(program: tuple[str, ...]) -> str:
    word = program[-1].rpartition(".")[2] if program[0] == "-m" else Path(program[-1]).stem
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in word).lstrip("._-") or "program"
