"""What the command line said of the launch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .rendezvous import Rendezvous

LOG_SIZE = "256MB"


@dataclass(frozen=True, kw_only=True)
class Flags(Rendezvous):
    """torchrun's flags, and ours, as given; None where not given."""

    nproc_per_node: str | None = None
    nnodes: str | None = None
    node_rank: int | None = None
    standalone: bool = False
    max_restarts: int = 0
    grace: float | None = None
    """Seconds that saving and stopping may take; None: no limit."""
    hang_timeout: float | None = None
    """Seconds for the watchdog; None: its own defaults; 0: it is off."""
    monitor_interval: float = 0.1
    log_dir: str | None = None
    """Where logs go instead of the run directory."""
    tee: str = "0"
    redirects: str = "0"
    local_ranks_filter: str | None = None
    log_line_prefix_template: str | None = None
    start: Literal["auto", "preload", "exec"] = "auto"
    """Whether ranks are forked from a process that has imported torch, or executed, as torchrun executes them. auto:
    forked, except for a program that sets variables before it imports torch."""
    ranks: str | None = None
    log_size: str = LOG_SIZE


def as_words(flags: Mapping[str, Any]) -> list[str]:
    """The flags as on a command line: `--name value`, `--name` alone for True, nothing for None, False and 0."""
    words: list[str] = []
    for name, value in flags.items():
        for each in value if isinstance(value, tuple) else [value] if value else []:
            words += [f"--{name.replace('_', '-')}", *([] if each is True else [str(each)])]
    return words
