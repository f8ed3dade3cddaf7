"""`dist-train`: the commands and their help. A command's module is imported when it is used, so help is instant.

Results go to stdout, messages for people to stderr. A mistake in the usage is one line and exit code 2.
"""

import difflib
import importlib
import os
import sys
from typing import Any

import click

from dist_train.errors import ExitCode, UserError, require_linux

from .console import mark, say

COMMANDS = {
    "new": "Write a small project to begin with: config, model, data set, test.",
    "train": "Train what a config describes, on all GPUs or CPU cores.",
    "run": "Run any script, module or program on several ranks, as torchrun does.",
    "slurm": "Submit what a config describes as a SLURM job.",
    "sweep": "Train a config for many values of some keys, and rank the results.",
    "watch": "Show a run that goes on, here or in the queue: figures, curves, logs.",
    "stop": "Save and end a run, here or in the queue.",
    "evaluate": "Metrics of a run's or a checkpoint's model on held-out data.",
    "predict": "What a model says of your own pictures, tables or texts.",
    "export": "A model as safetensors or torch.export's file, tried before it is kept.",
    "config": "Show or check a config, or print the schema.",
    "replay": "Compute recorded steps again: do they come out the same, to the last bit?",
    "fingerprint": "One hash over all model and optimizer tensors, to compare runs.",
    "checkpoints": "What a run has saved, and whether it is sound.",
    "cache": "Decoded images that are kept: show, build, verify, drop.",
    "doctor": "Would a training work here, and is every rank as fast as the others?",
    "report": "A run on one page: curves, classes, why it ended, what to try.",
    "compare": "What differs between runs, and is one config better than another?",
    "runs": "The runs there are: state, step, best metric, folder.",
    "completion": "What bash, zsh or fish reads to complete commands, config keys and runs.",
}
"""Each command's name and its line of help. The command itself is `commands/NAME.py:command`."""


class UserPath(click.Path):
    """A path in which a leading `~` is the home folder: no shell expands it after `--root=`."""

    def __init__(self, plain: click.Path) -> None:
        vars(self).update(vars(plain))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)


class Commands(click.Group):
    """A group whose members are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__package__}.commands.{cmd_name}").command
        for parameter in command.params:
            if type(parameter.type) is click.Path:
                parameter.type = UserPath(parameter.type)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"no command {args[0]!r}{_hint(args[0])}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    if name.endswith((".yaml", ".yml")):
        return f". To train it: dist-train train {name}"
    return f". Did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"


def _print_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            version = metadata.version("dist-train")
        except metadata.PackageNotFoundError:  # run from a checkout that was never installed
            version = "(not installed)"
        click.echo(f"dist-train {version}")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="dist-train COMMAND --help tells more. Exit codes: 0 done, 1 replay: not the same, compare: not better, "
    "doctor: a problem, cache: images missing or damaged, 2 config or usage, 3 run directory in use, 4 cannot "
    "resume, 10 user code failed, "
    "11 non-finite, 12 out of memory, 13 data, 14 checkpoint I/O, 15 hang, 75 saved, start me again, "
    "130/143 stopped and saved.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def commands() -> None:
    """Distributed training for PyTorch: the same bits for any number of processes."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Ends the process."""
    stdout = sys.stdout
    try:
        require_linux()
        if "_DIST_TRAIN_COMPLETE" in os.environ:  # a shell asks what TAB offers
            importlib.import_module(f"{__package__}.completion")
        code = commands.main(args=arguments, prog_name="dist-train", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        code = ExitCode.CONFIG
    except click.ClickException as error:
        text = " ".join(error.format_message().split())
        if text.startswith(("No ", "Missing", "Invalid", "Got", "Option")):
            text = text[:1].lower() + text[1:]
        context = getattr(error, "ctx", None)
        say(f"{context.command_path if context else 'dist-train'}: {text}")
        code = ExitCode.CONFIG
    except UserError as error:
        say(f"{mark('✗', 'red')} {error}")
        code = error.code
    except (KeyboardInterrupt, click.Abort):
        code = ExitCode.INTERRUPTED
    except SystemExit:
        if sys.stdout is stdout:
            raise
        code = ExitCode.DONE  # whoever read our output has gone: click replaces stdout then, and ends with 1
    sys.exit(int(code or 0))
