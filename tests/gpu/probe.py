"""`python -m tests.gpu.probe`: the backend by which several ranks on one GPU can reduce, `nccl` or `gloo`."""

import torch
import torch.distributed as dist

from tests.gpu.placed import environment
from tests.rank_pool import RankFailed, run_ranks


def _sum(ranks: object, backend: str) -> float:
    dist.init_process_group(backend)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    value = torch.ones(1000, device=device)
    dist.all_reduce(value)
    return value[-1].item()


def main() -> None:
    try:
        works = run_ranks(_sum, 2, "nccl", timeout=40, environment=environment("cuda")) == [2.0, 2.0]
    except RankFailed:
        works = False
    print("nccl" if works else "gloo")


if __name__ == "__main__":
    main()
