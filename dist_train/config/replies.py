"""What a process of ours replies that is asked about what only torch or wandb can tell: one object of JSON on stdout.

No torch and no pydantic here: both sides start with this.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Reply:
    """`problem` says why there is no answer, or why it is not complete."""

    problem: str | None = None

    def send(self) -> None:
        print(json.dumps(asdict(self)))


@dataclass(kw_only=True)
class TorchFacts(Reply):
    """What torch sees on this machine.

    Attributes:
        cuda: the version that torch is built for.
        gpus: their names.
        backends: with their versions.
    """

    torch: str | None = None
    cuda: str | None = None
    gpus: list[str] = field(default_factory=list)
    backends: dict[str, str] = field(default_factory=dict)
    why_no_gpu: str | None = None
    torchvision_problem: str | None = None


@dataclass(kw_only=True)
class WandbFacts(Reply):
    """What W&B would do: its mode, and whether there are credentials; None where nobody has looked."""

    mode: str = ""
    credentials: bool | None = None


@dataclass(kw_only=True)
class Description(Reply):
    """Sizes of data, model and training. What is not known is None.

    Attributes:
        state_bytes: of a checkpoint.
        lr: points on the curve of the learning rate.
        cache: of each folder of decoded images, as data/cache/survey.py has it.
        notes: lines for the user on the data.
        not_on_a_gpu: why the model has no exact form there.
        exit_code: where a training would fail, its exit code.
    """

    train_samples: int | None = None
    evaluation_samples: int | None = None
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    state_bytes: int | None = None
    lr: list[float] = field(default_factory=list)
    cache: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_on_a_gpu: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True)
class RanksMeasured:
    """What ranks have measured of themselves and each other, by rank.

    Attributes:
        gflops: GFLOP/s of the fastest multiplications.
        share: of a core that the rank got, 0 to 1; 1 on a GPU.
        all_reduce_mb: MB of the tensor that was added up.
        all_reduce_gbs: GB/s that each link carries: bytes of the tensor per second, times 2 (W - 1) / W (NCCL tests'
            "bus bandwidth"); None for a rank that is alone.
        pairs_gbs: `0-1`: GB/s each way.
    """

    world_size: int
    backend: str
    device: str
    gflops: list[float]
    share: list[float]
    all_reduce_mb: int
    all_reduce_gbs: float | None
    pairs_gbs: dict[str, float]
