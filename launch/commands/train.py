"""`dist-train train`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dist_train.config.errors import UserError
from launch.commands.common import DASHES_AND_UNDERSCORES, OverridesLast, existing_config, load, split_config
from launch.console import say

if TYPE_CHECKING:
    from launch.plan import LaunchPlan

EPILOG = """\b
Where a run lives, and what it goes on from:
  (nothing)                 a new directory, RUN_ROOT/NAME/<UTC time>-<4 characters>
  --run-dir DIR             that directory; goes on if it holds checkpoints
  --run-dir DIR --resume none
                            that directory, which must not hold checkpoints
  --resume auto             RUN_ROOT/NAME/latest, or a new directory if there is none
  --resume RUN              in that run's directory; CONFIG may be left out
  --resume CHECKPOINT       a new directory that begins from RUN/checkpoints/step-…
  under SLURM               RUN_ROOT/NAME/slurm-JOBID, so that a requeued job goes on
Several nodes without SLURM need the same --run-dir (or --rdzv-id) on each.

\b
Ctrl-C, SIGTERM: save and stop; a second one ends everything at once.
SIGUSR1: save, stop, exit code 75 (start me again). SIGUSR2: save and go on."""


def _torchrun(name: str, **settings: Any) -> Any:
    """One of torchrun's flags, and its environment variable, PET_NAME."""
    return click.option(f"--{name}", envvar=f"PET_{name.upper().replace('-', '_')}", **settings)


def hang_timeout(value: str | None) -> float | None:
    """None where nothing was given, 0 for `off`."""
    if value in (None, "off"):
        return None if value is None else 0.0
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{value!r} is neither a number of seconds above 0 nor off")
    return seconds


@click.command(cls=OverridesLast, context_settings=DASHES_AND_UNDERSCORES, epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[CONFIG] [a.b=c]...")
@_torchrun("nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks on each node. auto: every GPU, or as many as cores.")
@_torchrun("nnodes", metavar="N", help="Nodes. Default: SLURM's, or 1.")
@_torchrun("node-rank", type=int, help="Which of the nodes this is.")
@_torchrun("rdzv-backend", help="static where head and node rank are known, else c10d.")
@_torchrun("rdzv-endpoint", metavar="HOST:PORT", help="Where the nodes meet.")
@_torchrun("rdzv-id", help="Name that the nodes of this start have in common.")
@_torchrun("rdzv-conf", metavar="K=V,...", help="More for the rendezvous.")
@_torchrun("standalone", is_flag=True, help="One node, whatever SLURM says.")
@_torchrun("master-addr", help="Host of node 0.")
@_torchrun("master-port", type=click.IntRange(1, 65535), help="Its port; on one node, any free one.")
@_torchrun("local-addr", help="Address of this node.")
@_torchrun("max-restarts", type=click.IntRange(0), default=0, help="New starts from the last checkpoint after a crash.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="After a signal, the time to save and stop in; then all ends unsaved, to go on from the last checkpoint.",
)
@click.option(
    "--hang-timeout",
    callback=lambda context, option, value: hang_timeout(value),
    metavar="SECONDS|off",
    help="Seconds without a finished step, and 5 x the slowest recent one, after which it counts as hung. Default: 10.",
)
@_torchrun("monitor-interval", type=float, default=0.1, help="Seconds between two looks at the ranks.")
@_torchrun("log-dir", type=click.Path(file_okay=False), help="Of rank<R>.log. Default: logs/ in the run directory.")
@_torchrun("tee", default="0", metavar="3|LOCAL:3,...", help="Ranks shown on the console beside rank 0.")
@click.option("--run-dir", type=click.Path(file_okay=False), help="Where the run lives; see below.")
@click.option("--resume", metavar="auto|PATH|none", help="What it goes on from; see below.")
@click.option(
    "--allow-change",
    multiple=True,
    metavar="KEY",
    help="A config key, or `torch` or `data`, that may differ from what the run began with.",
)
@click.option("--dry-run", is_flag=True, help="Print what would run. Starts nothing, writes nothing.")
def command(words: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Train what CONFIG describes, with overrides such as optimizer.lr=0.1."""
    config_path, config, plan, note = prepare(words, **options)
    if dry_run:
        from launch.dry_run import show

        sys.exit(show(config, plan, config_path, [word for word in words if word != config_path]))
    if note:
        say(note)
    from launch.supervisor import supervise

    sys.exit(supervise(plan))


def prepare(
    words: tuple[str, ...], run_dir: str | None, resume: str | None, allow_change: tuple[str, ...], **flags: Any
) -> "tuple[str, Any, LaunchPlan, str | None]":
    """From the command line to the plan: config path, config, plan, and what the user might not expect of it.

    Raises:
        UserError: when it cannot be done.
    """
    config_path, overrides = _config(words, resume, run_dir)
    config = load(config_path, overrides)
    from launch import host, run_dirs
    from launch.plan import Flags, count_nodes, make_plan

    given, machine = Flags(**flags), host.look()
    slurm = machine.slurm if not given.standalone else None
    wish = run_dirs.Wish(
        run_dir=run_dir,
        resume=resume,
        job=f"slurm-{slurm.job}" if slurm else given.rdzv_id,
        nodes=count_nodes(given, machine),
    )
    choice = run_dirs.choose(config, wish)
    changes = [word for key in allow_change for word in ("--allow-change", key)]
    plan = make_plan(
        config,
        given,
        machine,
        folder=choice.folder,
        program=("-m", "dist_train"),
        arguments=(config_path, *overrides, "--run-dir", str(choice.folder), *changes),
        resume=choice.resume,
        keep_latest=run_dirs.is_below_root(config, choice.folder),
    )
    return config_path, config, plan, choice.note


def _config(words: tuple[str, ...], resume: str | None, run_dir: str | None) -> tuple[str, tuple[str, ...]]:
    config, overrides = split_config(words)
    if config is not None:
        return existing_config(config), overrides
    from launch.run_dirs import config_of

    found = config_of(resume, run_dir)
    if found is None and resume not in (None, "auto", "none") and not Path(str(resume)).exists():
        raise UserError(f"--resume {resume}: no such directory")
    return existing_config(str(found) if found else None), overrides
