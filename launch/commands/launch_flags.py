"""torchrun's flags, as `train` and `run` have them."""

from typing import Any

import click

from ..plan.console_options import LOG_SIZE
from .common import with_options

_LOGS = "Of rank<R>.log. Default: logs/ in the run directory."


def torchrun_flag(*names: str, **settings: Any) -> Any:
    """One of torchrun's flags, and its environment variable, PET_NAME."""
    long = next(name for name in names if name.startswith("--"))
    return click.option(*names, envvar=f"PET_{long.removeprefix('--').upper().replace('-', '_')}", **settings)


def hang_timeout(value: str | None) -> float | None:
    """Seconds; None if nothing was given, 0 for `off`."""
    if value in (None, "off"):
        return None if value is None else 0.0
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{value!r} is neither a number of seconds above 0 nor off")
    return seconds


launch_flags = with_options(
    torchrun_flag(
        "--nproc-per-node", metavar="N|auto|gpu|cpu", help="Ranks on each node. auto: every GPU, or as many as cores."
    ),
    torchrun_flag("--nnodes", metavar="N", help="Nodes. Default: SLURM's, or 1."),
    torchrun_flag("--node-rank", type=int, help="Which of the nodes this is."),
    torchrun_flag("--rdzv-backend", help="static where head and node rank are known, else c10d."),
    torchrun_flag("--rdzv-endpoint", metavar="HOST:PORT", help="Where the nodes meet."),
    torchrun_flag("--rdzv-id", help="Name that the nodes of this start have in common."),
    torchrun_flag(
        "--rdzv-conf",
        metavar="K=V,...",
        help="join_timeout=SECONDS: to wait for a node that stays away. Default: 600.",
    ),
    torchrun_flag("--standalone", is_flag=True, help="One node, whatever SLURM says."),
    torchrun_flag("--master-addr", help="Host of node 0."),
    torchrun_flag("--master-port", type=click.IntRange(1, 65535), help="Its port; on one node, any free one."),
    torchrun_flag("--local-addr", help="Address of this node."),
    torchrun_flag(
        "--max-restarts", type=click.IntRange(0), default=0, help="Restarts from the last checkpoint after a crash."
    ),
    click.option(
        "--grace",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Time to save and stop after a signal; when it is over, everything ends unsaved.",
    ),
    click.option(
        "--hang-timeout",
        callback=lambda context, option, value: hang_timeout(value),
        metavar="SECONDS|off",
        help="Seconds in which no rank goes forward, after which a training is ended. What keeps it is told after 10. "
        "Default: 300; programs of others are only told of (docs/hangs.md).",
    ),
    torchrun_flag("--monitor-interval", type=float, default=0.1, help="Seconds between two looks at the ranks."),
    torchrun_flag("--log-dir", type=click.Path(file_okay=False), help=_LOGS),
    torchrun_flag("-t", "--tee", default="0", metavar="3|LOCAL:3,...", help="Ranks shown beside rank 0."),
    click.option("--ranks", metavar="0,3-5|all", help="Ranks shown on the console. Default: 0."),
    click.option(
        "--log-size",
        metavar="SIZE",
        default=LOG_SIZE,
        show_default=True,
        help="A rank's log that has grown to it becomes rank<R>.log.1, in place of the one before.",
    ),
    click.option(
        "--start",
        type=click.Choice(["preload", "exec"]),
        default="preload",
        show_default=True,
        help="Fork the ranks from a process that has imported torch once, or execute each, as torchrun does.",
    ),
)
"""The options that `launch.plan.flags.Flags` holds."""
