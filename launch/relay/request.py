"""What the supervisor asks of the relay."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Tee:
    """The ranks that torchrun's --tee shows besides rank 0: all of them, or those with these local ranks."""

    all: bool = False
    local: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Which ranks the console shows: those that --ranks names, else rank 0 and those that --tee names."""

    ranks: list[int] | None = None
    tee: Tee = field(default_factory=Tee)

    def includes(self, rank: int, local_rank: int) -> bool:
        if self.ranks is not None:
            return rank in self.ranks
        return rank == 0 or self.tee.all or local_rank in self.tee.local

    @property
    def is_rank0_alone(self) -> bool:
        return not (self.tee.all or self.tee.local) if self.ranks is None else self.ranks == [0]


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
