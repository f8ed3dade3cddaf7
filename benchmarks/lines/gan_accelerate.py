"""A GAN with Accelerate: `accelerate launch --cpu --num_processes 2 gan_accelerate.py OUT`."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.lines.gan_parts import NOISE, Ring, networks

(OUT,) = sys.argv[1:]
STEPS, EVERY = 30, 10


def main():
    accelerator = Accelerator(cpu=True)
    set_seed(0)
    generator, discriminator = networks()
    set_seed(0, device_specific=True)
    rate = {"lr": 2e-3, "betas": (0.5, 0.999)}
    for_generator, for_discriminator = (
        torch.optim.Adam(net.parameters(), **rate) for net in (generator, discriminator)
    )
    loader = DataLoader(Ring(), batch_size=24, shuffle=True)
    generator, discriminator, for_generator, for_discriminator, loader = accelerator.prepare(
        generator, discriminator, for_generator, for_discriminator, loader
    )

    saved = sorted(Path(OUT).glob("step_*"), key=lambda path: int(path.name.partition("_")[2]))
    step = 0
    if saved:
        accelerator.load_state(str(saved[-1]))
        step = int(saved[-1].name.partition("_")[2])
    while step < STEPS:
        epoch, into = divmod(step, len(loader))
        loader.set_epoch(epoch)
        for real in accelerator.skip_first_batches(loader, into):
            noise = torch.randn(len(real), NOISE, device=accelerator.device)
            with torch.no_grad():
                fake = generator(noise)
            d_loss = (F.softplus(-discriminator(real)) + F.softplus(discriminator(fake))).mean()
            accelerator.backward(d_loss)
            for_discriminator.step()
            for_discriminator.zero_grad()
            g_loss = F.softplus(-discriminator(generator(noise))).mean()
            accelerator.backward(g_loss)
            for_generator.step()
            for_generator.zero_grad()
            for_discriminator.zero_grad()
            step += 1
            if step % EVERY == 0:
                d, g = accelerator.reduce(torch.stack([d_loss.detach(), g_loss.detach()]), "mean").tolist()
                accelerator.print(f"step {step}: d {d:.4f} g {g:.4f}")
                accelerator.save_state(f"{OUT}/step_{step}")
                if accelerator.is_main_process:
                    with open(f"{OUT}/metrics.jsonl", "a") as log:
                        log.write(json.dumps({"step": step, "d": d, "g": g}) + "\n")
            if step == STEPS:
                break
    accelerator.end_training()


if __name__ == "__main__":
    main()
