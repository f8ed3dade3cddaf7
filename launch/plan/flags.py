"""What the command line said of the launch."""

from dataclasses import dataclass
from typing import Literal

from .console_options import LOG_SIZE


@dataclass(frozen=True, kw_only=True)
class Flags:
    """torchrun's flags as given; None where not given."""

    nproc_per_node: str | None = None
    nnodes: str | None = None
    node_rank: int | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None
    rdzv_conf: str | None = None
    standalone: bool = False
    master_addr: str | None = None
    master_port: int | None = None
    local_addr: str | None = None
    max_restarts: int = 0
    grace: float | None = None
    hang_timeout: float | None = None
    monitor_interval: float = 0.1
    log_dir: str | None = None
    tee: str = "0"
    start: Literal["preload", "exec"] = "preload"
    ranks: str | None = None
    log_size: str = LOG_SIZE
