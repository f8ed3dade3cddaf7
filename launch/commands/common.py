"""What several commands share. Nothing heavy is imported before it is needed."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dist_train.config.errors import UserError

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig

DASHES_AND_UNDERSCORES = {"token_normalize_func": lambda word: word.replace("_", "-")}
"""For click: `--nproc_per_node` and `--nproc-per-node` are the same, as torchrun has it."""


class OverridesLast(click.Command):
    """Tells a mistyped flag among the arguments from a config."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            near = f" Did you mean {error.possibilities[0]}?" if error.possibilities else ""
            raise click.UsageError(f"no option {error.option_name}.{near}", ctx) from None


def split_config(words: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """`[CONFIG] [a.b=c …]` as config and overrides.

    Raises:
        UserError: when something is neither.
    """
    config = os.path.expanduser(words[0]) if words and not _is_override(words[0]) else None
    overrides = tuple(words[1:] if config else words)
    for word in overrides:
        if not _is_override(word):
            kind = "a second config" if word.endswith((".yaml", ".yml")) else "no override"
            raise UserError(f"{word!r} is {kind}: one config comes first, then overrides such as optimizer.lr=0.1")
    return config, overrides


def _is_override(word: str) -> bool:
    try:
        return "=" in word and not Path(word).is_file()
    except OSError:  # longer than any path may be
        return True


def existing_config(config: str | None) -> str:
    """The config, if it is a file.

    Raises:
        UserError: with the nearest file there is.
    """
    if config is None:
        raise UserError("which config? The first argument is a YAML file, such as configs/digits.yaml")
    path = Path(config)
    if path.is_dir():
        raise UserError(f"{config} is a folder; to go on with a run: dist-train train --resume {config}")
    if not path.exists():
        raise UserError(f"{config}: no such file{_nearest_file(path)}")
    return config


def _nearest_file(path: Path) -> str:
    import difflib

    folders = dict.fromkeys((path.parent, Path("configs")))
    known = [str(file) for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.y*ml"))]
    wanted = path if path.suffix else path.with_suffix(".yaml")
    by_name = {Path(name).name: name for name in reversed(known)}
    near = difflib.get_close_matches(str(wanted), known, n=1) or difflib.get_close_matches(wanted.name, by_name, n=1)
    return f". Did you mean {by_name.get(near[0], near[0])}?" if near else ""


def load(config: str, overrides: Sequence[str]) -> "RunConfig":
    """The validated config.

    Raises:
        UserError: with all its problems.
    """
    from dist_train.config.problems import ConfigError
    from dist_train.config.source import load as load_config

    try:
        return load_config(config, overrides)
    except ConfigError as error:
        raise UserError(str(error)) from None


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Goes on as `python -m module` in this very process: signals and exit code are its own."""
    environment = {**os.environ, "PYTHONPATH": search_path()}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


def home() -> str:
    """The folder that our packages are imported from."""
    return str(Path(__file__).resolve().parents[2])


def search_path() -> str:
    """PYTHONPATH for another process of ours: where our packages are, then what the user has given."""
    return os.pathsep.join([home(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])


def json_option(help_text: str) -> Callable[[Any], Any]:
    return click.option("--json", "as_json", is_flag=True, help=help_text)
