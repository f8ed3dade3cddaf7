"""`dist-train config`."""

import click

from dist_train.config.stdout import tell

from ..configs import existing_config, split_config
from ..console import mark, say


@click.group()
def command() -> None:
    """Show or check a config, or print the schema."""


@command.command("show")
@click.argument("words", nargs=-1, metavar="CONFIG [a.b=c]...")
def show_config(words: tuple[str, ...]) -> None:
    """The resolved config as YAML: every key with the value that a run would use."""
    config, overrides = split_config(words)
    path = existing_config(config)
    from dist_train.config.dump import to_yaml
    from dist_train.config.source import load

    tell(to_yaml(load(path, overrides)))


@command.command()
@click.argument("words", nargs=-1, metavar="CONFIG [a.b=c]...")
def validate(words: tuple[str, ...]) -> None:
    """Check a config: all its problems at once, with file, line and column; exit code 2 if there are any."""
    config, overrides = split_config(words)
    path = existing_config(config)
    from dist_train.config.source import load

    load(path, overrides)
    say(f"{mark('✓', 'green')} {config}: valid")


@command.command()
def schema() -> None:
    """The JSON Schema of a config file, for editors and generators."""
    from dist_train.config.json_schema import json_schema

    tell(json_schema())
