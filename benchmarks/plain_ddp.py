"""What one writes by hand for torchrun after PyTorch's tutorials on DDP: the other side of step_overhead.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.plain_ddp --model cnn --steps 200

Of dist-train it has the model and the bytes of the images, nothing else. A tutorial's script reads the loss after every
step; this one after every tenth, and it makes floats of the images a batch at a time, not one by one.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.images import tensor_dataset
from benchmarks.models import CONFIGS, build
from benchmarks.stamps import Writer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=CONFIGS, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--global-batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--stamps", type=Path, help="where rank 0 tells when each step ended")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    first = dist.get_rank() == 0
    step_ended = Writer(args.stamps) if args.stamps and first else lambda: None

    dataset = tensor_dataset("train")
    sampler = DistributedSampler(dataset, drop_last=True)
    batch_size = args.global_batch // dist.get_world_size()
    loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, drop_last=True, pin_memory=cuda)

    torch.manual_seed(0)
    model = DistributedDataParallel(build(args.model).to(device), device_ids=[device] if cuda else None)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    scheduler = CosineAnnealingLR(optimizer, T_max=args.steps)

    model.train()
    step = 0
    while step < args.steps:
        sampler.set_epoch(step // len(loader))
        for images, targets in loader:
            images = images.to(device, non_blocking=True).float().div_(255)
            targets = targets.to(device, non_blocking=True)
            optimizer.zero_grad()
            loss = criterion(model(images), targets)
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            step_ended()
            if step % 10 == 0 and first:
                print(f"step {step} loss {loss.item():.4f}", flush=True)
            if step == args.steps:
                break

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
