"""examples/plain_loop.py with dist_train.exact: `dist-train run --nproc-per-node 2 examples/own_loop.py [STEPS
[FOLDER]]`, or torchrun, or python alone. It ends in the same bits each time, also when it was killed and started again.
"""

import math
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from dist_train import exact

max_iters = int(sys.argv[1]) if len(sys.argv) > 1 else 30
out_dir = sys.argv[2] if len(sys.argv) > 2 else "out"
batch_size, block_size, vocabulary, width = 4, 16, 64, 32
gradient_accumulation_steps = 6
eval_interval, eval_iters = 10, 4
learning_rate, warmup_iters, grad_clip = 1e-2, 5, 1.0
text = (b"Whatever is worth doing at all is worth doing well. " * 40)[:2000]
data = torch.tensor([byte % vocabulary for byte in text])

ddp = int(os.environ.get("RANK", -1)) != -1
if ddp:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    ddp_rank = int(os.environ["RANK"])
    master_process = ddp_rank == 0
else:
    master_process = True
device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
exact.seed(1337)


def get_batch(split):
    """Inputs and targets, int64 [batch_size, block_size]."""
    part = data[:1600] if split == "train" else data[1600:]
    ix = torch.randint(len(part) - block_size, (batch_size,))
    x = torch.stack([part[i : i + block_size] for i in ix])
    y = torch.stack([part[i + 1 : i + 1 + block_size] for i in ix])
    return x.to(device), y.to(device)


class Gpt(nn.Module):
    """int64 [m, block] -> logits [m, block, vocabulary] and, with targets, their loss."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(block_size, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x, y=None):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        hidden = self.tokens(x) + self.places.weight[: x.shape[1]]
        logits = self.head(self.block(hidden, src_mask=mask, is_causal=True))
        return logits, None if y is None else F.cross_entropy(logits.flatten(0, 1), y.flatten())


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    return learning_rate * 0.5 * (1 + math.cos(math.pi * min(1, it / max_iters)))


@torch.no_grad()
def estimate_loss():
    model.eval()
    losses = torch.stack([model(*get_batch("val"))[1] for _ in range(eval_iters)])
    model.train()
    return losses.mean()


model = Gpt().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
model = exact.DistributedDataParallel(model, microbatches=gradient_accumulation_steps, seed=1337)
iter_num = exact.resume(out_dir, model=model, optimizer=optimizer)
while iter_num < max_iters:
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iter_num)
    if iter_num % eval_interval == 0:
        val_loss = estimate_loss()
        if master_process:
            print(f"step {iter_num}: val loss {val_loss:.4f}")
    for _ in model.each(iter_num):
        x, y = get_batch("train")
        logits, loss = model(x, y)
        loss = loss / gradient_accumulation_steps
        loss.backward()
    exact.clip(model, grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num % eval_interval == 0:
        exact.save(out_dir, step=iter_num, model=model, optimizer=optimizer)
if master_process:
    print(exact.fingerprint(model=model, optimizer=optimizer))
if ddp:
    dist.destroy_process_group()
