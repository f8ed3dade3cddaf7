"""A GAN, two models and two optimizers: `dist-train run --nproc-per-node 2 examples/gan.py [STEPS [FOLDER]]`, or
torchrun, or python alone: the same bits each time.
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from dist_train import exact

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
FOLDER = sys.argv[2] if len(sys.argv) > 2 else "out"
BATCH, NOISE = 48, 8


class Ring(torch.utils.data.Dataset):
    """Points near a circle, float32 [2], and nothing to go with them."""

    def __len__(self):
        return 500

    def __getitem__(self, index):
        angle = torch.tensor(index * 0.0628)
        return torch.stack([angle.cos(), angle.sin()]) + 0.05 * torch.randn(2), 0


exact.seed(0)
generator = nn.Sequential(nn.Linear(NOISE, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)).to(exact.device())
discriminator = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
discriminator.to(exact.device())
generator = exact.DistributedDataParallel(generator, microbatches=6)
discriminator = exact.DistributedDataParallel(discriminator, microbatches=6)
optimizers = [torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.5, 0.999)) for m in (generator, discriminator)]
state = {"generator": generator, "discriminator": discriminator, "g": optimizers[0], "d": optimizers[1]}
start = exact.resume(FOLDER, **state)

for step in exact.loader(Ring(), global_batch=BATCH, microbatches=6, steps=STEPS, start=start):
    losses = {}
    for real in discriminator.each(step):
        noise = torch.randn(len(real.inputs), NOISE, device=exact.device())
        with torch.no_grad():
            fake = generator(noise)
        loss = (F.softplus(-discriminator(real.inputs)) + F.softplus(discriminator(fake))).sum() / BATCH
        loss.backward()
        losses[real.number] = {"d": loss}
    optimizers[1].step()
    for real in generator.each(step):
        noise = torch.randn(len(real.inputs), NOISE, device=exact.device())
        loss = F.softplus(-discriminator(generator(noise))).sum() / BATCH
        loss.backward()
        losses[real.number]["g"] = loss
    optimizers[0].step()
    done = step[0].step + 1
    if done % 10 == 0:
        total = exact.sum(losses)
        if exact.is_first():
            print(f"step {done}: d {total['d']:.4f} g {total['g']:.4f}")
        exact.save(FOLDER, step=done, **state)
if exact.is_first():
    print(exact.fingerprint(**state))
