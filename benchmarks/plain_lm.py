"""A language model by hand for torchrun, in the style of nanoGPT's train.py: step_overhead's other side for `gpt`.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.plain_lm --tokens FOLDER --steps 200

Of dist-train it has the model and the files of tokens, nothing else. AdamW is fused, as nanoGPT has it where it can be.
The loss is read after every tenth step.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.models import CONTEXT, VOCABULARY, gpt
from benchmarks.stamps import Writer

WARM_UP, PEAK, FINAL = 100, 1e-3, 1e-4


def rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return PEAK * (step + 1) / WARM_UP
    share = (step - WARM_UP) / max(1, steps - WARM_UP)
    return FINAL + 0.5 * (1 + math.cos(math.pi * share)) * (PEAK - FINAL)


def batch(tokens: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    at = torch.randint(len(tokens) - CONTEXT, (size,)).tolist()
    inputs, targets = (
        torch.stack([torch.from_numpy(tokens[i + shift : i + shift + CONTEXT].astype(np.int64)) for i in at])
        for shift in (0, 1)
    )
    return inputs, targets


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--global-batch", type=int, required=True)
    parser.add_argument("--stamps", type=Path, help="where rank 0 tells when each step ended")
    args = parser.parse_args()

    dist.init_process_group("gloo")
    first, size = dist.get_rank() == 0, args.global_batch // dist.get_world_size()
    step_ended = Writer(args.stamps) if args.stamps and first else lambda: None
    tokens = np.memmap(args.tokens / "train.bin", dtype=np.uint16, mode="r")

    torch.manual_seed(1337)
    inner = gpt()
    model = DistributedDataParallel(inner)
    torch.manual_seed(1337 + dist.get_rank())
    matrices = [p for p in inner.parameters() if p.dim() >= 2]
    others = [p for p in inner.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99), fused=True)

    model.train()
    inputs, targets = batch(tokens, size)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps)
        scores = model(inputs)
        loss = F.cross_entropy(scores.view(-1, VOCABULARY), targets.view(-1))
        inputs, targets = batch(tokens, size)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step_ended()
        if step % 10 == 0 and first:
            print(f"step {step} loss {loss.item():.4f}", flush=True)

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
