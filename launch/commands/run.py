"""`dist-train run`."""

import os
import shlex
import sys
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import click

from dist_train.errors import ExitCode, UserError
from dist_train.rundir.codec import write_json
from dist_train.rundir.layout import RunDir
from dist_train.rundir.runs import make_run_dir, new_folder

from .. import completion
from ..console import mark, say
from ..plan import LaunchPlan, count_nodes, host, make_plan
from ..plan.flags import Flags, as_words
from ..plan.requirements import Requirements
from ..scheduler import everywhere
from .common import json_option, launch_command, print_verdict
from .launch_flags import launch_flags, program_flags

EPILOG = """\b
  dist-train run --nproc-per-node 4 train.py --lr 0.1
  dist-train run --nproc-per-node gpu -m package.train
  dist-train run --no-python ./program
Workers see torchrun's environment and defaults, but where you have not set them OMP_NUM_THREADS is a rank's share of
the cores and TORCH_NCCL_ASYNC_ERROR_HANDLING torch's own default, and the console shows rank 0 alone (--tee 3 shows
all); every rank's output is in its log. Of torchrun's flags the beginning will do; all behind PROGRAM is PROGRAM's.

\b
Ctrl-C, SIGTERM go to the workers, which have --grace seconds to end; a second one ends everything at once.
SIGUSR1, SIGUSR2 go to the workers that handle them; the others are sent SIGTERM for SIGUSR1, which ends with 75.

\b
In the shell of salloc or srun --pty it starts itself on all nodes of the allocation, with srun, as train does."""
SHUTDOWN_TIMEOUT_S = 30.0
"""torchrun's own --shutdown-timeout."""
PASSED_ON = ("role", "numa_binding", "virtual_local_rank", "event_log_handler")
"""Options that are left to torch's agent."""


@launch_command(epilog=EPILOG, before_program=True)
@launch_flags
@program_flags
@click.option("--preload", metavar="MODULE,...", help="What to import once for all ranks, besides torch.")
@json_option("Print the verdict as one JSON object at the end, on stdout.")
@click.option("--run-dir", type=click.Path(file_okay=False), help="For logs and verdicts. [default: runs/NAME/<time>]")
@click.argument("program", shell_complete=completion.files)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=completion.files)
def command(program: str, arguments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Run any PROGRAM on several ranks, as torchrun does."""
    from ..supervisor import supervise

    words = _program(program, options.pop("module"), options.pop("no_python"), options.pop("run_path"))
    everywhere(options, lambda: Path(options["run_dir"] or new_folder(Path("runs") / _name(words))))
    filters = {name: options.pop(f"duplicate_{name}_filters") for name in ("stdout", "stderr")}
    plan = _make_folder(_plan(words, arguments, **options), may_choose=options["run_dir"] is None)
    for name in [name for name, found in filters.items() if found]:
        look = shlex.join(["grep", "-F", *(word for each in filters[name] for word in ("-e", each))])
        say(f"--duplicate-{name}-filters: the logs have every line, find those with: {look} {plan.logs}/rank*.log")
    state = RunDir(plan.folder).state
    write_json(state, {"status": "running"})
    code = supervise(plan)
    if plan.node in (0, None):
        stopped = code in (ExitCode.REQUEUE, ExitCode.INTERRUPTED, ExitCode.TERMINATED)
        write_json(state, {"status": "stopped" if stopped else "done" if code == ExitCode.DONE else "failed"})
    if as_json:
        print_verdict(plan, code)
    sys.exit(code)


def _program(program: str, module: bool, no_python: bool, run_path: bool) -> tuple[str, ...]:
    if run_path:
        module = no_python = False
    if module and no_python:
        raise UserError("--module is a Python module, and --no-python says that the program is none: give one of them")
    if module:
        return ("-m", program)
    if no_python:
        return ("--no-python", program)
    path = Path(program)
    if path.is_dir() and not (path / "__main__.py").is_file():
        raise UserError(f"{program} is a folder without a __main__.py")
    if not path.exists():
        raise UserError(f"{program}: no such file; a module is -m MODULE, another program --no-python PROGRAM")
    return (program,)


def _make_folder(plan: LaunchPlan, may_choose: bool) -> LaunchPlan:
    """Where the current folder cannot be written to, logs and verdicts go to a private one for temporary files."""
    try:
        make_run_dir(plan.folder)
    except UserError as error:
        if not may_choose or plan.nodes > 1:
            raise
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"dist-train-{os.getuid()}-{_name(plan.program)}-"))
        except OSError:
            raise error from None
        say(f"{mark('!', 'yellow')} {error}: logs and verdicts are in {folder}; --run-dir chooses another one")
        plan = replace(plan, folder=folder)
        make_run_dir(folder)
    return plan


def _plan(
    program: tuple[str, ...], arguments: tuple[str, ...], preload: str | None, run_dir: str | None, **flags: Any
) -> LaunchPlan:
    passed_on = {name: flags.pop(name) for name in PASSED_ON}
    shutdown = flags.pop("shutdown_timeout")
    flags["nproc_per_node"] = flags["nproc_per_node"] or "1"
    flags["grace"] = flags["grace"] or shutdown or SHUTDOWN_TIMEOUT_S
    prefix = Template(flags["log_line_prefix_template"] or "")
    flags["log_line_prefix_template"] = prefix.safe_substitute(role_name=passed_on["role"] or "default")
    given, machine = Flags(**flags), host.look()
    modules = tuple(name.strip() for name in (preload or "").split(",") if name.strip() not in ("", "torch"))
    nodes = count_nodes(given, machine)
    if run_dir is None:
        root = Path("runs") / _name(program)
        job = machine.place.run_name if machine.place else given.rdzv_id
        if nodes > 1 and not job:
            raise UserError(f"{nodes} nodes have to agree on one --run-dir DIR (or have the same --rdzv-id)")
        run_dir = str(root / _in_name(str(job)) if nodes > 1 else new_folder(root))
    return make_plan(
        Requirements(preload=modules, passed_on=tuple(as_words(passed_on)), environment_wins=True),
        given,
        machine,
        folder=Path(run_dir),
        program=program,
        arguments=arguments,
        run_id=_run_id(given, nodes),
    )


def _run_id(given: Flags, nodes: int) -> str | None:
    """As under torchrun, unless an id was given, which counts on one node too."""
    if given.standalone or (nodes == 1 and not (given.rdzv_id or given.rdzv_endpoint or given.master_port)):
        return str(uuid.uuid4())
    return given.rdzv_id


def _name(program: tuple[str, ...]) -> str:
    return _in_name(program[-1].rpartition(".")[2] if program[0] == "-m" else Path(program[-1]).stem)


def _in_name(word: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in word).lstrip("._-") or "program"
