"""`dist-train config`."""

import json
import sys

import click

from dist_train.config.stdout import tell
from dist_train.errors import ExitCode

from .. import completion
from ..configs import existing_config, split_config
from ..console import mark, say
from .common import json_option


@click.group()
def command() -> None:
    """Show or check a config, or print the schema."""


@command.command("show")
@click.argument("words", nargs=-1, metavar="CONFIG [a.b=c]...", shell_complete=completion.words)
@json_option("As one JSON object.")
def show_config(words: tuple[str, ...], as_json: bool) -> None:
    """The resolved config as YAML: every key with the value that a run would use."""
    config, overrides = split_config(words)
    path = existing_config(config)
    from dist_train.config.dump import to_yaml
    from dist_train.config.source import load

    resolved = load(path, overrides)
    tell(resolved.model_dump_json(indent=2) if as_json else to_yaml(resolved))


@command.command()
@click.argument("words", nargs=-1, metavar="CONFIG [a.b=c]...", shell_complete=completion.words)
@json_option("One JSON object on stdout, with a list of the problems.")
def validate(words: tuple[str, ...], as_json: bool) -> None:
    """Check a config: all its problems at once, with file, line and column; exit code 2 if there are any."""
    config, overrides = split_config(words)
    path = existing_config(config)
    from dist_train.config.problems import ConfigError
    from dist_train.config.source import load

    problems = []
    try:
        load(path, overrides)
    except ConfigError as error:
        if not as_json:
            raise
        problems = [{name: getattr(one, name) for name in ("where", "key", "message")} for one in error.problems]
    if as_json:
        tell(json.dumps({"valid": not problems, "problems": problems}, indent=2))
        sys.exit(ExitCode.CONFIG if problems else ExitCode.DONE)
    say(f"{mark('✓', 'green')} {config}: valid")


@command.command()
def schema() -> None:
    """The JSON Schema of a config file, for editors and generators."""
    from dist_train.config.json_schema import json_schema

    tell(json_schema())
