"""The parts of dist-train for a script that keeps its own loop: the same bits for any number of ranks, under
`dist-train run`, torchrun and alone. See docs/own-loop.md.
"""

import sys

if sys.platform != "linux":
    raise ImportError("dist_train.exact needs Linux: WSL on Windows, or a container")

from dist_train.errors import UserError
from dist_train.exact.checkpoints import resume, save
from dist_train.exact.data import Loader, evaluation_loader
from dist_train.exact.figures import clip, fingerprint, seed, sum
from dist_train.exact.model import DistributedDataParallel
from dist_train.exact.world import close, device, init, is_first, rank, world_size

loader = Loader

__all__ = ["DistributedDataParallel", "Loader", "UserError", "clip", "close", "device", "evaluation_loader"]
__all__ += ["fingerprint", "init", "is_first", "loader", "rank", "resume", "save", "seed", "sum", "world_size"]
