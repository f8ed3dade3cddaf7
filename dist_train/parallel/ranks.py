"""This process's rank, from torchrun's variables alone; without them, the one rank of a world of one."""

import os
from dataclasses import dataclass

from dist_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place, in torchrun's terms."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_first_on_node(self) -> bool:
        return self.local_rank == 0

    @property
    def nodes(self) -> int:
        return -(-self.world_size // self.local_world_size)

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Reads RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and GROUP_RANK.

        Raises:
            UserError: when only some of them are set, or one is no whole number.
        """
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        given = {name: os.environ[name] for name in names[:4] if name in os.environ}
        if not given:
            return cls(rank=0, local_rank=0, world_size=1, local_world_size=1, node=0)
        missing = [name for name in names[:4] if name not in given]
        if missing:
            raise UserError(f"{', '.join(given)} set but not {', '.join(missing)}: start the ranks with torchrun")
        try:
            rank, local_rank, world_size, here, node = (int(os.environ.get(name, "0")) for name in names)
        except ValueError as error:
            raise UserError(f"torchrun's variables must be whole numbers: {error}") from None
        return cls(rank=rank, local_rank=local_rank, world_size=world_size, local_world_size=here, node=node)
