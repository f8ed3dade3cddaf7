"""What several commands share. Nothing heavy is imported before it is needed."""

import copy
import json
from collections.abc import Callable
from typing import Any

import click

from dist_train.config.stdout import tell
from dist_train.errors import ExitCode

from .. import completion
from ..plan import LaunchPlan

_TRUST = "Let the run's own config run other people's code, from now on. Without it, an error names that code."


class _Command(click.Command):
    """Suggests the nearest option when one is mistyped."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            meant = _preferred([one for one in self.get_params(ctx) if one.opts[-1].startswith(error.option_name)])
            if len(meant) > 1:
                names = ", ".join(option.opts[-1] for option in meant)
                raise click.UsageError(f"{error.option_name} could be {names}", ctx) from None
            near = f" Did you mean {error.possibilities[0]}?" if error.possibilities else ""
            raise click.UsageError(f"no option {error.option_name}.{near}", ctx) from None


class _BeforeProgram(_Command):
    """Options, PROGRAM, and what is the program's. As in torchrun's own parser, the beginning of an option's name will
    do, and a `--` right behind the program is left out."""

    def make_parser(self, ctx: click.Context) -> Any:
        parser = super().make_parser(ctx)
        options = {one.opts[-1]: one for one in self.get_params(ctx) if isinstance(one, click.Option)}
        begin_so: dict[str, list[click.Parameter]] = {}
        for name, option in options.items():
            for end in range(len("--x"), len(name)):
                begin_so.setdefault(name[:end], []).append(option)
        for begun, found in begin_so.items():
            if begun not in options and len(meant := _preferred(found)) == 1:
                shortened = copy.copy(meant[0])
                shortened.opts = [begun]
                shortened.add_to_parser(parser, ctx)
        return parser

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = [*args]
        rest = super().parse_args(ctx, args)
        words = ctx.params.get("arguments") or ()
        if words[:1] == ("--",) and given[-len(words) - 2 : -len(words) - 1] != ["--"]:
            ctx.params["arguments"] = words[1:]
        return rest


def _preferred(options: list[click.Parameter]) -> list[click.Parameter]:
    """Of options whose names begin alike torchrun's, which have a variable; where there is none of them, ours."""
    return [option for option in options if option.envvar] or options


def launch_command(*, epilog: str | None = None, before_program: bool = False) -> Callable[[Any], click.Command]:
    """A command whose options may also be spelled with underscores, `--nproc_per_node`, as for torchrun.

    Args:
        before_program: everything after the first argument is an argument.
    """
    settings = {
        "token_normalize_func": lambda word: word.replace("_", "-"),
        "allow_interspersed_args": not before_program,
    }
    kind = _BeforeProgram if before_program else _Command
    return click.command(cls=kind, context_settings=settings, epilog=epilog)


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Adds all of them to a command, in the order of the help."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


RUN: dict[str, Any] = {"type": click.Path(exists=True, file_okay=False), "shell_complete": completion.runs}
RESUME: dict[str, Any] = {"type": click.Path(), "metavar": "auto|PATH|none", "shell_complete": completion.runs}
run_argument = click.argument("target", metavar="RUN_OR_CHECKPOINT", **RUN)
trust_option = click.option("--trust", is_flag=True, help=_TRUST)


def json_option(help_text: str) -> Callable[[Any], Any]:
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def print_verdict(plan: LaunchPlan, code: int) -> None:
    """The verdict of the launch that has ended with `code`, on stdout."""
    from ..diagnosis.verdict import latest

    tell(json.dumps(latest(plan.folder)), code=code or ExitCode.CHECKPOINT_IO)
