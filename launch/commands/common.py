"""What several commands share. Nothing heavy is imported before it is needed."""

import json
from collections.abc import Callable
from typing import Any

import click

from dist_train.config.stdout import tell
from dist_train.errors import ExitCode

from ..plan import LaunchPlan

_TRUST = "Let the run's own config run other people's code, from now on. Without it, an error names that code."


class _Command(click.Command):
    """Suggests the nearest option when one is mistyped."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            near = f" Did you mean {error.possibilities[0]}?" if error.possibilities else ""
            raise click.UsageError(f"no option {error.option_name}.{near}", ctx) from None


def launch_command(*, epilog: str | None = None, options_last: bool = False) -> Callable[[Any], click.Command]:
    """A command whose options may also be spelled with underscores, `--nproc_per_node`, as for torchrun.

    Args:
        options_last: everything after the first argument is an argument.
    """
    settings = {
        "token_normalize_func": lambda word: word.replace("_", "-"),
        "allow_interspersed_args": not options_last,
    }
    return click.command(cls=_Command, context_settings=settings, epilog=epilog)


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Adds all of them to a command, in the order of the help."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


trust_option = click.option("--trust", is_flag=True, help=_TRUST)


def json_option(help_text: str) -> Callable[[Any], Any]:
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def print_verdict(plan: LaunchPlan, code: int) -> None:
    """The verdict of the launch that has ended with `code`, on stdout."""
    from ..diagnosis.verdict import latest

    tell(json.dumps(latest(plan.folder)), code=code or ExitCode.CHECKPOINT_IO)
