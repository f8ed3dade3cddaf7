"""What a program asks of the plan: from a config, or nothing in particular."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dist_train.config.torchvision_names import TorchvisionName

if TYPE_CHECKING:
    from dist_train.config.schema import RunConfig

_OF_TORCHVISION = ("cifar10", "cifar100", "mnist", "fashion_mnist", "rand_augment")
"""Data and changes of images that torchvision has, besides its models."""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What the program asks of the plan; the defaults are those of a program that we know nothing of."""

    backend: Literal["auto", "nccl", "gloo"] = "auto"
    threads: int | None = None
    """Threads of each rank on a CPU; None: its share of the cores."""
    microbatches: int | Literal["auto", "fit"] = "auto"
    exact: bool = False
    preload: tuple[str, ...] = ()
    """What the fork server imports besides torch."""
    passed_on: tuple[str, ...] = ()
    """Flags that are torchrun's own business."""
    environment_wins: bool = False
    """Whether a variable that the user has set beats what the plan decides, and not only its defaults."""

    @classmethod
    def of(cls, config: "RunConfig") -> "Requirements":
        """The requirements of our own programs."""
        return cls(
            backend=config.distributed.backend,
            threads=config.distributed.threads_per_rank,
            microbatches=config.batch.microbatches,
            exact=config.exact,
            preload=_modules(config),
        )


def _modules(config: "RunConfig") -> tuple[str, ...]:
    """The modules that every rank imports under this config. torchvision is left out if unused: that takes time."""
    found = ["dist_train.worker"]
    names = {config.model.name, config.data.name, *(step.name for step in config.augment)}
    found += ["torchvision"] * bool(names & {*get_args(TorchvisionName), *_OF_TORCHVISION})
    found += ["torch._dynamo", "torch._inductor.config"] * config.model.compile
    return tuple(found)
