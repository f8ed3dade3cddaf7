"""Which config a command line means, and whether the code that it would run is trusted."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.config import shipped
from dist_train.errors import UserError

from .children import isolated
from .console import mark, say

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig


def split_config(words: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """`[CONFIG] [a.b=c …]` as config and overrides.

    Raises:
        UserError: when something is neither.
    """
    config = os.path.expanduser(words[0]) if words and not is_override(words[0]) else None
    overrides = tuple(words[1:] if config else words)
    for word in overrides:
        if not is_override(word):
            kind = "a second config" if word.endswith((".yaml", ".yml")) else "no override"
            raise UserError(f"{word!r} is {kind}: one config comes first, then overrides such as optimizer.lr=0.1")
    return config, overrides


def is_override(word: str) -> bool:
    try:
        return "=" in word and not Path(word).is_file()
    except OSError:  # longer than a path may be
        return True


def existing_config(config: str | None) -> str:
    """The file that is meant: a file, or a config that comes with dist-train.

    Raises:
        UserError: with the nearest file there is, or all names.
    """
    if config is None:
        raise UserError("which config? The first argument is a YAML file, or a config that comes along, such as digits")
    found, known = shipped.meant_by(config), shipped.names()
    path = Path(found)
    if path.is_dir():
        ours = f"; for the config that comes with dist-train: {config}.yaml" if config in known else ""
        raise UserError(f"{config} is a folder; to go on with a run: dist-train train --resume {config}{ours}")
    if not path.exists():
        near = _nearest_file(path)
        ours = "" if path.suffix or path.name != config else f" With dist-train come {', '.join(known)}"
        raise UserError(f"{config}: no such file{near or '.' * bool(ours)}{ours}")
    if config in known and path.parent != shipped.FOLDER:
        say(f"{mark('!', 'yellow')} {config} is {found} of this folder, not the config that comes with dist-train")
    return found


def _nearest_file(path: Path) -> str:
    import difflib

    folders = dict.fromkeys((path.parent, Path("configs")))
    known = [str(file) for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.y*ml"))]
    known += shipped.names()
    wanted = path if path.suffix else path.with_suffix(".yaml")
    by_name = {Path(name).name: name for name in reversed(known)}
    near = difflib.get_close_matches(str(wanted), known, n=1) or difflib.get_close_matches(wanted.name, by_name, n=1)
    return f". Did you mean {by_name.get(near[0], near[0])}?" if near else ""


def load_trusted(
    config: str, overrides: Sequence[str], of_run: bool = False, *, trust: bool = False, job: bool = False
) -> "RunConfig":
    """The validated config. A config that came with a run and would run unknown code needs `trust`.

    Args:
        of_run: the file was found in a run that the user has named.
        job: its section `slurm` will be executed.

    Raises:
        UserError: with all its problems, or with the code that it would run.
    """
    from dist_train.config import recorded

    return recorded.load_given(Path(config), overrides, trusts=trust, note=say, of_run=of_run, job=job)


def program_for(module: str, config: "RunConfig") -> tuple[str, ...]:
    """What a rank executes for a run that may have come from anybody.

    The current folder is searched for modules only if the config names one.
    """
    from dist_train.config.trust import powers

    return ("-m", module) if powers(config) else isolated(module)


def inputs_and_overrides(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of words of which some are overrides: files, folders and texts may hold a `=` too."""
    overrides = tuple(word for word in words if re.match(r"[a-z_]+\.[\w.]+=", word) and not os.path.exists(word))
    return tuple(os.path.expanduser(word) for word in words if word not in overrides), overrides


OF_EVALUATION = ("data", "eval", "loader", "distributed")
"""Sections that may be overridden when a saved model is evaluated; the model itself stays as it is."""


def load_recorded(target: str, overrides: Sequence[str], *, trust: bool) -> "RunConfig":
    """The config that a run directory or a checkpoint carries, with nothing in it that the user does not trust.

    Raises:
        UserError: when it has none, or cannot be read, or is not trusted.
    """
    from dist_train.config import recorded

    for word in overrides:
        if not is_override(word) or word.partition("=")[0].partition(".")[0] not in OF_EVALUATION:
            raise UserError(
                f"{word!r} is no override that a saved model can be evaluated with; these begin with "
                f"{', '.join(f'{name}.' for name in OF_EVALUATION)}: data.root=/elsewhere"
            )
    return recorded.read_recorded(Path(target), overrides).trusted(trust, say)


def remember_configs(configs: "Iterable[RunConfig]", *, job: bool = False) -> None:
    """Records that the user trusts these configs, so that their runs may be copied and moved."""
    from dist_train.config import trust

    trust.remember(power for config in configs for power in trust.powers(config, job=job))
