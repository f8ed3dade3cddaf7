"""A hand-written DDP script, over after some steps: torchrun and dist-train start the same for benchmarks.launch.

first_step.py STAMPS STEPS [GATE]      with GATE, it then waits until that file is there
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.stamps import Writer


def main() -> None:
    stamps, steps, *gate = sys.argv[1:]
    dist.init_process_group("gloo")
    step_ended = Writer(Path(stamps)) if dist.get_rank() == 0 else lambda: None
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(int(steps)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.randint(10, (8,))).backward()
        optimizer.step()
        step_ended()
    while gate and not Path(gate[0]).exists():
        time.sleep(0.05)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
