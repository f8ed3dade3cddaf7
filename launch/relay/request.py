"""What the supervisor asks of the relay."""

import socket
from dataclasses import dataclass, field
from string import Template

STDOUT, STDERR = 1, 2
"""As torchrun counts streams; 3 is both."""


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What torchrun's --tee or --redirects names: streams of every rank, or of each local rank."""

    all: int = 0
    local: dict[str, int] = field(default_factory=dict)

    def of(self, local_rank: int) -> int:
        return self.local.get(str(local_rank), self.all)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the console shows: the ranks that --ranks names; else rank 0, or those of --local-ranks-filter, without
    what --redirects names, and what --tee names.

    Attributes:
        prefix: of each line, with torchrun's macros; empty: `[rank3]: ` for each rank but 0.
    """

    ranks: list[int] | None = None
    tee: Streams = field(default_factory=Streams)
    redirects: Streams = field(default_factory=Streams)
    local_ranks: list[int] | None = None
    prefix: str = ""

    def streams(self, rank: int, local_rank: int) -> int:
        """STDOUT, STDERR, their sum, or 0."""
        if self.ranks is not None:
            return (STDOUT | STDERR) * (rank in self.ranks)
        if self.local_ranks is not None and local_rank not in self.local_ranks:
            return 0
        direct = (STDOUT | STDERR) * (rank == 0 or self.local_ranks is not None)
        return direct & ~self.redirects.of(local_rank) | self.tee.of(local_rank)

    def prefix_of(self, rank: int, local_rank: int) -> str:
        if not self.prefix or self.is_rank0_alone:
            return f"[rank{rank}]: " if rank else ""
        known = {"rank": rank, "local_rank": local_rank, "hostname": socket.gethostname()}
        return Template(self.prefix).safe_substitute(known)

    @property
    def is_rank0_alone(self) -> bool:
        if self.ranks is not None:
            return self.ranks == [0]
        return self.local_ranks is None and not (self.tee.all or any(self.tee.local.values()))


@dataclass(frozen=True, kw_only=True)
class RelayRequest:
    """One line of JSON on the relay's stdin.

    Attributes:
        listener: descriptor of the socket that ranks connect to.
        nodes: how many there are.
        limit: bytes in a log before it becomes the one before.
    """

    listener: int
    shown: Shown
    nodes: int
    limit: int
