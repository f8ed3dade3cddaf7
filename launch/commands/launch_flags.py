"""torchrun's flags, as `train` and `run` have them."""

from typing import Any

import click

from dist_train.config.stdout import tell

from .. import completion
from ..plan.flags import LOG_SIZE
from .common import with_options

NUMA = ("node", "socket", "exclusive", "core-complex")
METHODS = ("spawn", "fork", "forkserver")
_LOGS = "Of rank<R>.log. Default: logs/ in the run directory."


def torchrun_flag(*names: str, also: tuple[str, ...] = (), **settings: Any) -> Any:
    """One of torchrun's flags, and its environment variables: PET_NAME, then any other."""
    long = next(name for name in names if name.startswith("--"))
    variables = [f"PET_{long.removeprefix('--').upper().replace('-', '_')}", *also]
    return click.option(*names, envvar=variables, **settings)


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


def only_default(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Of --logs-specs: torch's own plug-in is accepted."""
    if value not in (None, "default"):
        raise click.BadParameter(
            f"{value} is a plug-in of torchrun's own redirection, and here a relay writes the ranks' logs: leave it "
            "out, or start with torchrun"
        )


def print_completion(context: click.Context, option: click.Parameter, shell: str | None) -> None:
    """Prints the script that completes `dist-train` in a shell, and ends."""
    if shell is not None:
        tell(completion.script(shell))
        context.exit()


def filters(context: click.Context, option: click.Parameter, value: str | None) -> list[str]:
    """torchrun's list of words, in which two commas are one."""
    return [word.replace("\0", ",") for word in value.replace(",,", "\0").split(",")] if value else []


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
        "--rdzv-conf", metavar="K=V,...", help="join_timeout=SECONDS: to wait for a node that stays away. Default: 600."
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
        help="Time to save and stop after a signal; when it is over, everything ends unsaved. Without it a training "
        "waits for its step, and says so when none ends; a second signal ends it. Other programs: 30.",
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
        type=click.Choice(["auto", "preload", "exec"]),
        default="auto",
        show_default=True,
        help="Fork the ranks from a process that has imported torch once, or execute each, as torchrun does. auto: "
        "fork, but for a script that sets variables before it imports torch.",
    ),
)
"""The options that `launch.plan.flags.Flags` holds."""

program_flags = with_options(
    torchrun_flag("-m", "--module", is_flag=True, help="The program is a module."),
    torchrun_flag("--no-python", is_flag=True, help="The program is no Python: execute it."),
    torchrun_flag("--run-path", is_flag=True, help="The program is a script, whatever -m and --no-python say."),
    torchrun_flag("--role", metavar="NAME", help="A name for the workers."),
    torchrun_flag("--numa-binding", type=click.Choice(NUMA), help="Bind each worker to CPUs near its GPU."),
    torchrun_flag("--virtual-local-rank", is_flag=True, help="Each worker sees its GPU alone, as number 0."),
    torchrun_flag("--event-log-handler", metavar="NAME", help="Of torch's elastic agent."),
    torchrun_flag(
        "--shutdown-timeout", type=float, also=("TORCH_ELASTIC_SHUTDOWN_TIMEOUT",), help="torchrun's name for --grace."
    ),
    torchrun_flag("--local-ranks-filter", metavar="0,1,...", help="Local ranks shown, and no other one."),
    torchrun_flag("-r", "--redirects", default="0", metavar="3|LOCAL:3,...", help="Streams that are in the log alone."),
    torchrun_flag(
        "--log-line-prefix-template",
        metavar="TEXT",
        also=("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE",),
        help="Before each line, instead of [rank1]: ; knows ${role_name}, ${local_rank}, ${rank}, ${hostname}.",
    ),
    torchrun_flag("--logs-specs", hidden=True, expose_value=False, callback=only_default),
    torchrun_flag("--duplicate-stdout-filters", hidden=True, callback=filters),
    torchrun_flag("--duplicate-stderr-filters", hidden=True, callback=filters),
    click.option(
        "--print-completion",
        type=click.Choice(completion.SHELLS),
        is_eager=True,
        expose_value=False,
        callback=print_completion,
        help="Print what completes dist-train in that shell, and end.",
    ),
    torchrun_flag("--start-method", type=click.Choice(METHODS), hidden=True, expose_value=False),
    torchrun_flag("--signals-to-handle", hidden=True, expose_value=False, help="SIGUSR1 and SIGUSR2 always are."),
    torchrun_flag("--use-env", is_flag=True, hidden=True, expose_value=False, help="The only way there is."),
)
"""Those of torchrun's that a program of which we know nothing may want."""
