"""A GAN with dist_train.exact: `dist-train run --nproc-per-node 2 gan_ours.py OUT`, or torchrun."""

import json
import sys

import torch
from torch.nn import functional as F

from benchmarks.lines.gan_parts import NOISE, Ring, networks
from dist_train import exact

(OUT,) = sys.argv[1:]
STEPS, EVERY, BATCH = 30, 10, 48


class Pairs(Ring):
    def __getitem__(self, index):
        return super().__getitem__(index), 0


exact.seed(0)
generator, discriminator = (exact.DistributedDataParallel(net.to(exact.device()), microbatches=6) for net in networks())
rate = {"lr": 2e-3, "betas": (0.5, 0.999)}
for_generator, for_discriminator = (torch.optim.Adam(net.parameters(), **rate) for net in (generator, discriminator))
state = {"generator": generator, "discriminator": discriminator, "g": for_generator, "d": for_discriminator}
start = exact.resume(OUT, **state)

for step in exact.loader(Pairs(), global_batch=BATCH, microbatches=6, steps=STEPS, start=start):
    losses = {}
    for real in discriminator.each(step):
        noise = torch.randn(len(real.inputs), NOISE, device=exact.device())
        with torch.no_grad():
            fake = generator(noise)
        loss = (F.softplus(-discriminator(real.inputs)) + F.softplus(discriminator(fake))).sum() / BATCH
        loss.backward()
        losses[real.number] = {"d": loss}
    for_discriminator.step()
    for real in generator.each(step):
        noise = torch.randn(len(real.inputs), NOISE, device=exact.device())
        loss = F.softplus(-discriminator(generator(noise))).sum() / BATCH
        loss.backward()
        losses[real.number]["g"] = loss
    for_generator.step()
    done = step[0].step + 1
    if done % EVERY == 0:
        total = {name: value.item() for name, value in exact.sum(losses).items()}
        exact.save(OUT, step=done, **state)
        if exact.is_first():
            print(f"step {done}: d {total['d']:.4f} g {total['g']:.4f}")
            with open(f"{OUT}/metrics.jsonl", "a") as log:
                log.write(json.dumps({"step": done, **total}) + "\n")
